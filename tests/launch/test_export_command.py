"""`rumpun export-checkpoint`: a run's checkpoint becomes a folder, and every mistake is one line that says what to do."""

from __future__ import annotations

import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch import export_command
from launch.export_command import export_checkpoint_command

for _folder in ("train", "train/history"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / _folder))

app = typer.Typer()
app.command()(export_checkpoint_command)


def export(*arguments: object) -> str:
    """What the command prints, on single spaces. Raises what it raises."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return re.sub(r"\s+", " ", result.output)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose finetuning left checkpoints of steps 5 and 12; it has no corpus and never pretrained."""
    from saved import KINDS, savers, split
    from tiny import make_world

    from train.encoder import EncoderConfig, load_backbone, make_encoder

    world = make_world(tmp_path_factory.mktemp("world"))
    run = tmp_path_factory.mktemp("runs") / "melayu"
    shutil.copytree(world / "model", run / "pretrain" / "model")
    write_json(run / "pretrain" / "stage.json", {"content": "c0ffee"})
    encoder = EncoderConfig(max_tokens=48, query_prompt="soalan: ", projection=16)
    torch.manual_seed(1)
    backbone = load_backbone(run / "pretrain" / "model", bidirectional=False, precision="fp32")
    module: Any = make_encoder(backbone, encoder)
    history = run / "history" / "finetune"
    history.mkdir(parents=True)
    settings = {f"encoder.{name}": value for name, value in encoder.model_dump().items()}
    write_json(
        history / "identity.json", {"model": "c0ffee", "config": {"finetune.matryoshka": [8], **settings}}
    )  # fmt: skip
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    made = savers(history / "checkpoints", 2, keep=9)
    for step in (5, 12):
        with torch.no_grad():
            module.projection.weight.fill_diagonal_(float(step))
        full = {(n, k): p.detach().flatten().clone() for n, p in module.named_parameters() for k in KINDS}
        for rank, pieces in reversed(list(enumerate(split(full, 2, shapes)))):
            made[rank].save(step, pieces, {}, {})
        for saver in made:
            saver.wait()
            assert saver.failure() is None
    return run


def projection(out: Path) -> float:
    from safetensors.torch import load_file

    return float(load_file(out / "model" / "2_Dense" / "model.safetensors")["linear.weight"][3, 3])


def test_the_newest_and_a_named_step(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "published"
    text = export("melayu", "--runs", finished.parent, "--out", out)
    assert "finetune, step 12 (saved by 2 ranks)" in text and f"model: {out / 'model'}" in text
    assert projection(out) == 12
    assert sorted(p.name for p in out.iterdir()) == ["model", "parity.json"]
    assert read_json(out / "parity.json")["max_abs_difference"] < 1e-5
    told = read_json(out / "model" / "config_sentence_transformers.json")
    assert (told["matryoshka_dims"], told["prompts"]["query"]) == ([8], "soalan: ")
    with pytest.raises(UserError, match=r"published: exists already.*--force"):
        export(finished, "--out", out)
    assert projection(out) == 12
    text = export(finished, "--out", out, "--step", 5, "--dtype", "bf16", "--force")
    assert "step 5 " in text and "as bf16" in text and projection(out) == 5
    assert read_json(out / "model" / "config.json")["dtype"] == "bfloat16"
    assert [p.name for p in out.parent.iterdir()] == ["published"]  # nothing is left beside


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "7"], r"--step 7: finetune of melayu has no such checkpoint.*take one of 5, 12, or latest"),
        (["--step", "newest"], r"--step newest: .*5, 12"),
        (["--phase", "pretrain"], r"phase pretrain: has no checkpoint. Fix: try --phase finetune"),
        (["--shard-gb", "0"], r"--shard-gb 0.0: must be a number above 0"),
        (["--shard-gb", "nan"], r"--shard-gb nan: must be a number above 0"),
    ],
)
def test_mistakes_are_one_line(finished: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        export(finished, "--out", tmp_path / "out", *arguments)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run 'melayo': no such run. Fix: did you mean melayu"):
        export("melayo", "--runs", finished.parent, "--out", tmp_path / "out")


def test_force_replaces_nothing_but_an_export(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter-1.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no earlier export"):
        export(finished, "--out", out, "--force")
    assert (out / "chapter-1.tex").read_text() == "years of work"


def test_a_place_that_cannot_be(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="lies below something that is a file"):
        export(finished, "--out", tmp_path / "file" / "out")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--out \.: exists already"):
        export(finished, "--out", ".")
    with pytest.raises(UserError, match=r"--out \.: is no earlier export"):
        export(finished, "--out", ".", "--force")


def test_a_full_disk_is_found_out_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export_command.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"needs \d+\.\d+ GB while it is written, and the disk has 0.00 free"):
        export(finished, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_leaves_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    import errno

    from train.export import weights

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "write_verified", full)
    with pytest.raises(UserError, match=r"the disk \(or your quota\) is full"):
        export(finished, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_was_built_again_is_refused(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    write_json(run / "pretrain" / "stage.json", {"content": "decaf"})
    with pytest.raises(UserError, match="is not the model that this finetune began with"):
        export(run, "--out", tmp_path / "out")
    shutil.rmtree(run / "pretrain" / "model")
    with pytest.raises(UserError, match="is missing; finetune began with it"):
        export(run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_names_its_file(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    part = next((run / "history" / "finetune" / "checkpoints" / "step-00000012").glob("state-0001*"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"state-0001.*export another step"):
        export(run, "--out", tmp_path / "out")
    assert "step 5" in export(run, "--out", tmp_path / "out", "--step", "5")


def test_one_that_makes_place_meanwhile_says_so(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from train.history.checkpoint import Checkpoint

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    read = Checkpoint.read

    def gone(self: Checkpoint, *arguments: Any) -> Any:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        return read(self, *arguments)

    monkeypatch.setattr(Checkpoint, "read", gone)
    with pytest.raises(UserError, match="made place for a newer checkpoint while it was read"):
        export(run, "--out", tmp_path / "out")
