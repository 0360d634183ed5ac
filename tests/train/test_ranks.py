"""Promise 1: the same loss and the same gradient on any number of ranks, under every ZeRO stage.

The reference is written here from the definitions, in float64, one sequence at a time, without packing, gathering or
DeepSpeed; real processes over gloo are compared with it and with each other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOLERANCE = 1e-5


def run_ranks(phase: str, folder: Path, *, ranks: int, stage: int, out: Path) -> dict:
    from safetensors.torch import load_file

    script = Path(__file__).with_name("rank_job.py")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            str(script),
            phase,
            str(folder),
            str(stage),
            str(out),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parents[2]), str(script.parent)])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


def reference(phase: str, folder: Path) -> dict:
    """Loss and gradients in float64 from the definitions."""
    import torch
    import torch.nn.functional as F
    from tiny import ENCODER, FINETUNE, PRETRAIN, finetune_batch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    from data_prep.shards import Shards

    if phase == "pretrain":
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64, attn_implementation="eager")
        total, count = 0.0, 0
        for row in Shards(folder / "tokens", "tokens").take(range(PRETRAIN["batch_rows"])):
            ends = [*row["document_starts"][1:], len(row["input_ids"])]
            for a, b in zip(row["document_starts"], ends, strict=True):
                ids = torch.tensor([row["input_ids"][a:b]])
                if b - a > 1:
                    logits = model(input_ids=ids).logits[0, :-1]
                    total = total + F.cross_entropy(logits, ids[0, 1:], reduction="sum")
                    count += b - a - 1
        loss = total / count
        loss.backward()
        trunk = model.model
    else:
        trunk = AutoModel.from_pretrained(folder / "model", dtype=torch.float64, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")

        def vector(text: str) -> torch.Tensor:
            ids = tokenizer(text, truncation=True, max_length=ENCODER.max_tokens, return_tensors="pt")["input_ids"]
            return F.normalize(trunk(input_ids=ids).last_hidden_state[0].mean(0), dim=0)

        batch = finetune_batch(folder)
        queries = [vector(r["query"]) for r in batch]
        passages = [[vector(p) for p in r["passages"]] for r in batch]
        losses = []
        if phase == "margin":
            for q, row in zip(queries, passages, strict=True):
                for j, p in enumerate(row):
                    d = 1 - q @ p
                    losses.append(0.5 * d**2 if j == 0 else 0.5 * torch.clamp(FINETUNE_MARGIN - d, min=0) ** 2)
        else:
            for i, q in enumerate(queries):
                known = set(batch[i]["known_ids"])
                scores = [q @ passages[i][0] / FINETUNE["temperature"]]
                for k, row in enumerate(passages):
                    for j, p in enumerate(row):
                        if (k, j) != (i, 0) and batch[k]["passage_ids"][j] not in known:
                            scores.append(q @ p / FINETUNE["temperature"])
                losses.append(torch.logsumexp(torch.stack(scores), 0) - scores[0])
        loss = torch.stack(losses).mean()
        loss.backward()
    found = {name: p.grad for name, p in trunk.named_parameters()}
    return {**found, "loss": loss.detach().reshape(1)}


FINETUNE_MARGIN = 0.5


def assert_same(got: dict, wanted: dict) -> None:
    import torch

    assert abs(float(got["loss"]) - float(wanted["loss"])) <= TOLERANCE * abs(float(wanted["loss"]))
    for name, gradient in wanted.items():
        if name == "norm":
            continue
        difference = torch.linalg.norm(got[name].double() - gradient.double())
        assert difference <= TOLERANCE * max(1e-3, float(torch.linalg.norm(gradient.double()))), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "stage"),
    [("pretrain", 1), ("info_nce", 1), ("pretrain", 3), ("info_nce", 3), ("margin", 2), ("info_nce", 0)],
)
def test_two_ranks_equal_one_and_the_reference(phase: str, stage: int, world_folder: Path, tmp_path: Path) -> None:
    wanted = reference(phase, world_folder)
    two = run_ranks(phase, world_folder, ranks=2, stage=stage, out=tmp_path / "two.safetensors")
    assert_same(two, wanted)
    if stage in (1, 2):
        one = run_ranks(phase, world_folder, ranks=1, stage=stage, out=tmp_path / "one.safetensors")
        assert_same(two, one)
        assert float(two["norm"]) == pytest.approx(float(one["norm"]), rel=TOLERANCE)


def test_the_comparison_notices_a_wrong_scale(world_folder: Path) -> None:
    wanted = reference("info_nce", world_folder)
    wrong = {k: v * 2 if k != "loss" else v for k, v in wanted.items()}
    with pytest.raises(AssertionError):
        assert_same(wrong, wanted)
