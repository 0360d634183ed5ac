"""Pretraining against its definition: float64, one document at a time, without packing, ranks or DeepSpeed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

TOLERANCE = 1e-5
Z_LOSS = 0.01
# batch_rows = 5 with one row a pass: on two ranks one of them makes an idle pass; on three, two of them
CASES: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1, "batch_rows": 5, "micro_batch_tokens": 1},
    "zero2": {"zero_stage": 2, "batch_rows": 5, "micro_batch_tokens": 40},
    "zero3": {"zero_stage": 3, "batch_rows": 5, "micro_batch_tokens": 40},
    "zero3_recomputed": {"zero_stage": 3, "activation_checkpointing": True, "micro_batch_tokens": 10_000},
    "z_loss": {"z_loss": Z_LOSS, "batch_rows": 7},
    "padded": {"layout": "padded"},
}


def run_job(forks: Any, folder: Path, out: Path, *, ranks: int, names: list[str]) -> dict[str, dict[str, Any]]:
    """Facts and gradients of the cases on `ranks` processes."""
    from safetensors.torch import load_file

    out.mkdir()
    cases = [f"{name}={json.dumps(CASES[name])}" for name in names]
    forks.run(Path(__file__).with_name("pretrain_job.py"), folder, out, *cases, ranks=ranks, log=out / "log")
    return {
        n: json.loads((out / f"{n}.json").read_text()) | {"gradients": load_file(out / f"{n}.safetensors")}
        for n in names
    }


def _documents(folder: Path, row: int) -> list[list[int]]:
    from data_prep.shards import Shards

    told = Shards(folder / "tokens", "tokens").take([row])[0]
    edges = [*told["document_starts"], len(told["input_ids"])]
    return [told["input_ids"][a:b] for a, b in pairwise(edges)]


def reference(folder: Path, rows: list[int], *, z_loss: float = 0.0) -> tuple[float, dict[str, Any]]:
    """Mean loss per predicted token and its gradient."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64, attn_implementation="eager")
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        for document in _documents(folder, row):
            logits = model(input_ids=torch.tensor([document])).logits[0]
            for place, token in enumerate(document[1:]):
                z = logits[place].exp().sum()
                total = total - torch.log(logits[place, token].exp() / z) + z_loss * torch.log(z) ** 2
                count += 1
    (total / count).backward()
    return total.item() / count, {n: p.grad for n, p in model.named_parameters()}


@pytest.fixture(scope="module")
def results(
    forks: Any, world_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("pretrain")
    wanted = {1: ["zero1", "zero3_recomputed"], 2: list(CASES), 3: ["zero1", "zero3"]}
    return {r: run_job(forks, world_folder, out / str(r), ranks=r, names=names) for r, names in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_loss_gradient_and_norm_are_those_of_the_definition(
    ranks: int, results: dict[int, dict[str, dict[str, Any]]], world_folder: Path
) -> None:
    import torch
    from tiny import PRETRAIN

    from data_prep.shards import Shards
    from train.cursor import GlobalOrder, Source

    order = GlobalOrder([Source("tokens", len(Shards(world_folder / "tokens", "tokens")))], fingerprint="f", seed=0)
    for name, found in results[ranks].items():
        size = CASES[name].get("batch_rows", PRETRAIN["batch_rows"])
        rows = [row for _, row in order.batch(0, size)]
        loss, gradients = reference(world_folder, rows, z_loss=CASES[name].get("z_loss", 0.0))
        assert found["loss"] == pytest.approx(loss, rel=TOLERANCE), name
        total = 0.0
        for parameter, wanted in gradients.items():
            got = found["gradients"][parameter].double()
            limit = TOLERANCE * max(1e-3, float(wanted.norm()))
            assert torch.linalg.norm(got - wanted) <= limit, (name, parameter)
            total += float(wanted.norm()) ** 2
        assert found["norm"] == pytest.approx(total**0.5, rel=TOLERANCE), name
        lengths = [len(d) for row in rows for d in _documents(world_folder, row)]
        tokens, sequences, pairs, squared, computed, _, again, _, head = found["work"]
        assert (tokens, sequences, pairs, head) == (sum(lengths), len(lengths), 0, sum(lengths))
        assert squared == sum(n * n for n in lengths)
        assert (computed > tokens) == (name == "padded")
        assert again == (tokens if name == "zero3_recomputed" else 0)


@pytest.mark.slow
def test_validation_is_the_mean_of_all_and_of_each_source(
    results: dict[int, dict[str, dict[str, Any]]], world_folder: Path
) -> None:
    from train.token_rows import TokenRows

    rows = TokenRows(world_folder / "tokens")
    chosen = rows.sample(11)
    groups = {"all": chosen} | {s: [r for r in chosen if rows.sources[r] == s] for s in ("berita", "forum")}
    wanted = {name: reference(world_folder, group)[0] for name, group in groups.items()}
    for ranks, cases in results.items():
        for name, found in cases.items():
            assert found["validation"] == pytest.approx(wanted, rel=TOLERANCE), (ranks, name)


@pytest.mark.slow
def test_ranks_without_a_row_make_idle_passes(results: dict[int, dict[str, dict[str, Any]]]) -> None:
    assert results[2]["zero1"]["passes"] == 3
    assert results[3]["zero3"]["passes"] == 2
    assert results[1]["zero1"]["passes"] == 5
