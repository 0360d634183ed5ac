"""What training saved in between is what it writes in the end: real ranks under DeepSpeed, then no group at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from survival.conftest import data, undisturbed, zygote  # noqa: F401 - fixtures
from survival.runs import STEPS, newest

from data_prep.files import read_json
from data_prep.progress import Progress
from train.encoder import EncoderConfig
from train.export import ExportConfig, checkpoint_to_model, export_checkpoint

pytestmark = pytest.mark.slow

ENCODER = EncoderConfig(max_tokens=32)
TEXTS = ["banjir di jalan", "nasi lemak sedap", "harga rumah naik " * 40]


@pytest.mark.parametrize(
    ("phase", "ranks", "stage"), [("finetune", 2, 3), ("finetune", 1, 1), ("pretrain", 2, 3)]
)  # fmt: skip
def test_any_ranks_and_any_stage(
    undisturbed: Any, data: Path, tmp_path: Path, phase: str, ranks: int, stage: int  # noqa: F811
) -> None:  # fmt: skip
    run = undisturbed(phase, ranks, zero_stage=stage)
    encoder = ENCODER if phase == "finetune" else None
    written = run.starts[-1].out / "model"
    exported = tmp_path / "exported"
    exported.mkdir()
    counts = checkpoint_to_model(newest(run.checkpoints), data / "model", exported, encoder=encoder)
    assert (counts["step"], counts["ranks"]) == (STEPS, ranks)
    names = sorted(path.name for path in written.iterdir())
    assert sorted(path.name for path in exported.iterdir()) == names and "model.safetensors" in names
    for name in names:
        assert (exported / name).read_bytes() == (written / name).read_bytes(), name

    earlier = min(path for path in run.checkpoints.iterdir() if path.name.startswith("step-"))
    out = tmp_path / "out"
    found = export_checkpoint(
        ExportConfig(dtype="bf16"), checkpoint=earlier, base=data / "model", encoder=encoder, texts=TEXTS, out=out,
        progress=Progress(),
    )  # fmt: skip
    assert found["step"] < STEPS
    assert sorted(path.name for path in out.iterdir()) == ["model", "parity.json"]
    ways = {"transformers"} | ({"sentence-transformers"} if encoder else set())
    record = read_json(out / "parity.json")
    assert record["against"].keys() == ways and record["dtype"] == "bf16"
    ours, theirs = load_file(out / "model" / "model.safetensors"), load_file(exported / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert any(not ours[name].equal(theirs[name].bfloat16()) for name in ours)  # it is another step
