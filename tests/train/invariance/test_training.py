"""Whole phases on other numbers of ranks: the same samples, the same losses, the same weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from invariance.plan import FINETUNED, PRETRAINED
from invariance.suite import TOLERANCE, Suite, compare

from data_prep.shards import Shards

pytestmark = pytest.mark.slow
WEIGHTS_TOLERANCE = 1e-4
"""Of every weight matrix after 20 steps of AdamW, which turns rounding of small gradients into steps of full size."""


def metrics(folder: Path, field: str) -> list[Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in rows if field in row]


@pytest.mark.parametrize(("world", "stage"), [(w, s) for w, stages in PRETRAINED.items() for s in stages])
def test_pretraining_on_rows_that_no_number_of_ranks_divides(suite: Suite, world: int, stage: int) -> None:
    from invariance.pretraining_reference import pretraining_reference
    from safetensors.torch import load_file

    suite.facts(world)
    out = suite.out(world) / f"pretrain-zero{stage}"
    wanted = pretraining_reference(suite.inputs / "model", suite.inputs / "token_rows" / "train")
    errors = compare(metrics(out, "loss")[0], load_file(out.with_suffix(".safetensors")), wanted)
    assert errors.loss <= TOLERANCE
    assert {n: e for n, e in errors.gradients.items() if e > TOLERANCE} == {}
    held_out = pretraining_reference(suite.inputs / "model", suite.inputs / "token_rows" / "validation")
    before = metrics(out, "validation_loss")[0]
    assert before == pytest.approx(float(held_out["loss"]), rel=TOLERANCE)


OTHERS = [(w, s) for w, stages in FINETUNED.items() for s in stages if w > 1]


@pytest.mark.parametrize(("world", "stage"), OTHERS)
def test_twenty_steps_train_on_the_same_samples(suite: Suite, world: int, stage: int) -> None:
    one = suite.facts(1)["finetune-zero0"]
    other = suite.facts(world)[f"finetune-zero{stage}"]
    assert len(one["rows"]) == 20
    assert other["ranks_agree"]
    assert other["rows"] == one["rows"]
    assert other["sequences"] == one["sequences"]
    stored = Counter(Shards(suite.inputs / "many_pairs", "pairs").column("query"))
    assert Counter(query for step in one["rows"][:9] for query, _ in step) == stored, "an epoch uses every pair once"


@pytest.mark.parametrize(("world", "stage"), OTHERS)
def test_twenty_steps_end_with_the_same_weights(suite: Suite, world: int, stage: int) -> None:
    import torch
    from safetensors.torch import load_file

    errors = suite.weights_error(world, stage)
    assert {name: e for name, e in errors.items() if e > WEIGHTS_TOLERANCE} == {}
    one, other = suite.out(1) / "finetune-zero0", suite.out(world) / f"finetune-zero{stage}"
    assert metrics(other, "loss") == pytest.approx(metrics(one, "loss"), rel=WEIGHTS_TOLERANCE)
    assert metrics(other, "grad_norm") == pytest.approx(metrics(one, "grad_norm"), rel=10 * WEIGHTS_TOLERANCE)
    assert any(norm > 0.5 for norm in metrics(one, "grad_norm")), "clipping was at work"
    begun = load_file(suite.inputs / "models" / "llama" / "model.safetensors")
    moved = load_file(one / "model" / "model.safetensors")
    distances = [float((moved[n] - begun[n]).norm() / begun[n].norm()) for n in begun]
    assert min(distances) > 20 * WEIGHTS_TOLERANCE, "the weights went much farther than they may differ"
    assert torch.isfinite(moved["norm.weight"]).all()


@pytest.mark.parametrize(("world", "stage"), OTHERS)
def test_retrieval_is_watched_on_the_way_as_the_saved_models_do_it(suite: Suite, world: int, stage: int) -> None:
    """At the beginning and the end, against the model folders as an embedder, in float64."""
    import numpy as np
    from invariance.runs import FINETUNE, WATCHED_EVERY

    from train.encoder import load_encoder
    from train.watch import draw_watched

    suite.facts(world)
    out = suite.out(world) / f"finetune-zero{stage}"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    watched = {row["step"]: row["eval/recall@10"] for row in rows if "eval/recall@10" in row}
    assert list(watched) == [0, WATCHED_EVERY, 2 * WATCHED_EVERY, FINETUNE["max_steps"]]
    (sample,) = draw_watched([suite.inputs / "watched"], queries=200, documents=50, seed=3)
    assert (len(sample.queries), len(sample.documents)) == (25, 50)
    model = load_encoder(out / "model")
    vectors = {
        role: model.embed(texts, role=role)
        for role, texts in (("query", sample.queries), ("passage", sample.documents))
    }
    scores = vectors["query"].astype(np.float64) @ vectors["passage"].astype(np.float64).T
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    found = [
        len(set(near) & set(wanted)) / len(wanted)
        for near, wanted in zip(nearest.tolist(), sample.relevant, strict=True)
    ]
    assert watched[FINETUNE["max_steps"]] == pytest.approx(float(np.mean(found)), abs=1e-9)
    assert [row["eval/watched/recall@10"] for row in rows if "eval/watched/recall@10" in row] == list(watched.values())
