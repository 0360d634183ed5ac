"""`rumpun export-checkpoint RUN --out DIR`: a published folder from any checkpoint of a run, finished or not.

Invariant: DIR is there whole and checked, or is as it was before.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json
from launch.history import folder_of
from launch.ledger_command import find_run
from launch.stages import RECORD

if TYPE_CHECKING:
    from train.encoder import EncoderConfig

_STARTS_FROM = {"finetune": "pretrain", "pretrain": "truncate"}
"""The stage whose model a phase begins with; config and tokenizer come from there."""
_MARGIN = 1.02


class Phase(StrEnum):
    """A training phase."""

    FINETUNE = "finetune"
    PRETRAIN = "pretrain"


class DtypeName(StrEnum):
    """How a type of weights is named."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def export_checkpoint_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or the name of one")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="where the folder goes; must not exist")],
    phase: Annotated[
        Phase,
        typer.Option("--phase", help="finetune: a sentence-transformers folder; pretrain: a causal language model"),
    ] = Phase.FINETUNE,
    step: Annotated[str, typer.Option("--step", metavar="N", help="the step, or latest")] = "latest",
    dtype: Annotated[DtypeName, typer.Option("--dtype", help="type of the weights")] = DtypeName.FP32,
    shard_gb: Annotated[
        float, typer.Option("--shard-gb", metavar="GB", help="most 10^9 bytes in one file of weights")
    ] = 50.0,
    onnx: Annotated[bool, typer.Option("--onnx", help="also write onnx/model.onnx")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export in DIR")] = False,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="where run folders are")] = Path("runs"),
) -> None:
    """Publish a checkpoint of a run, of any number of ranks and ZeRO stage; DIR/model loads without rumpun."""
    from launch.cli import quiet_libraries
    from launch.display import TerminalProgress
    from train.export import ExportConfig, export_checkpoint

    if not (math.isfinite(shard_gb) and shard_gb > 0):
        raise UserError(f"--shard-gb {shard_gb}", "must be a number above 0", "leave it out, or give e.g. 5")
    quiet_libraries()
    folder = find_run(run, runs)
    _check_out(out, force=force)
    place = checkpoint_of(folder, phase.value, step)
    base, encoder, matryoshka = _origin(folder, phase.value)
    parameters = sum(math.prod(shape) for shape in _manifest(place)["parameters"].values())
    config = ExportConfig(dtype=dtype.value, shard_gb=shard_gb, onnx=onnx)
    needed = _bytes_needed(parameters, dtype.value, onnx=onnx)
    with _beside(out, force=force, needed=needed) as building, _still_there(place):
        counts = export_checkpoint(
            config, checkpoint=place, base=base, encoder=encoder, texts=probes(folder, config.probe_texts),
            out=building, progress=TerminalProgress(), matryoshka=matryoshka,
        )  # fmt: skip
    typer.echo(
        f"{phase.value}, step {counts['step']:,} (saved by {counts['ranks']} ranks), "
        f"{counts['parameters'] / 1e6:,.1f} M parameters as {dtype.value}"
    )
    typer.echo(
        f"checked on {counts['probe_texts']} texts: largest difference from the trained model "
        f"{counts['max_abs_difference']:.1e} (parity.json)"
    )
    typer.echo(f"model: {out / 'model'}")


def checkpoint_of(run: Path, phase: str, step: str) -> Path:
    """The folder of a run's checkpoint.

    Args:
        step: a number, or `latest`.

    Raises:
        UserError: the phase has no checkpoint, or not of this step; the message lists those there are.
    """
    from train.history.folder import step_name, steps_in

    checkpoints = folder_of(run, phase) / "checkpoints"
    steps = steps_in(checkpoints)
    if not steps:
        others = [name for name in _STARTS_FROM if steps_in(folder_of(run, name) / "checkpoints")]
        raise UserError(
            f"run {run}, phase {phase}", "has no checkpoint",
            f"try --phase {others[0]}" if others else "train first: `rumpun run RECIPE` saves checkpoints as it goes",
        )  # fmt: skip
    if step == "latest":
        return checkpoints / step_name(steps[0])
    if not step.isdecimal() or int(step) not in steps:
        known = ", ".join(str(number) for number in sorted(steps))
        raise UserError(
            f"--step {step}", f"{phase} of {run.name} has no such checkpoint",
            f"take one of {known}, or latest ([checkpoint] keep says how many stay)",
        )  # fmt: skip
    return checkpoints / step_name(int(step))


@contextmanager
def _still_there(checkpoint: Path) -> Iterator[None]:
    """Say so where training, going on, deletes the checkpoint that is being read."""
    try:
        yield
    except FileNotFoundError as error:
        if checkpoint.exists():
            raise
        raise UserError(
            str(checkpoint), "made place for a newer checkpoint while it was read",
            "run this again, or raise [checkpoint] keep",
        ) from error  # fmt: skip


def _manifest(checkpoint: Path) -> dict[str, Any]:
    from train.history.manifest import Damaged, NewerFormat, read_manifest

    try:
        return read_manifest(checkpoint)
    except (Damaged, NewerFormat) as error:
        raise UserError(str(checkpoint), f"cannot be used ({error})", "export another step") from error


def _origin(run: Path, phase: str) -> tuple[Path, EncoderConfig | None, list[int]]:
    """The model folder that a phase began with, and how it makes vectors and which prefixes it trains."""
    from train.encoder import EncoderConfig

    identity = read_json(folder_of(run, phase) / "identity.json")
    stage = run / _STARTS_FROM[phase]
    if not (stage / "model" / "config.json").is_file():
        raise UserError(
            str(stage / "model"), f"is missing; {phase} began with it, and config and tokenizer come from there",
            "bring the folder back, or build its stage again with `rumpun run`",
        )  # fmt: skip
    if (stage / RECORD).is_file() and read_json(stage / RECORD)["content"] != identity["model"]:
        raise UserError(
            str(stage / "model"), f"is not the model that this {phase} began with: it was built again since",
            f"bring the former one back, or run {phase} again",
        )  # fmt: skip
    if phase == "pretrain":
        return stage / "model", None, []
    settings = identity["config"]
    encoder = {k.removeprefix("encoder."): v for k, v in settings.items() if k.startswith("encoder.")}
    return stage / "model", EncoderConfig(**encoder), list(settings.get("finetune.matryoshka") or [])


def probes(run: Path, count: int) -> list[str]:
    """Texts of the run's corpus, evenly spread; none where it has no corpus."""
    from data_prep.shards import Shards

    if not (run / "corpus" / RECORD).is_file():
        return []
    documents = Shards(run / "corpus", "documents")
    wanted = min(count, len(documents))
    return [row["text"] for row in documents.take([i * len(documents) // wanted for i in range(wanted)])]


def _check_out(out: Path, *, force: bool) -> None:
    """Raise `UserError` where something is in the way that may not be replaced."""
    if not os.path.lexists(out):
        return
    if not force:
        raise UserError(f"--out {out}", "exists already", "give another place, or --force to replace an earlier export")
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / "parity.json").is_file()):
        raise UserError(
            f"--out {out}", "is no earlier export (it has no parity.json), so --force does not replace it",
            "give another place, or remove it yourself",
        )  # fmt: skip


def _bytes_needed(parameters: int, dtype: str, *, onnx: bool) -> int:
    """Bytes on the disk while it is written: as trained, as published, and for ONNX."""
    return round(_MARGIN * parameters * (4 + (4 if dtype == "fp32" else 2) + (4 if onnx else 0)))


@contextmanager
def _beside(out: Path, *, force: bool, needed: int) -> Iterator[Path]:
    """A folder to build in that takes the place of `out` in the end, and is gone if anything fails."""
    out = Path(os.path.abspath(out))  # `.` has no name
    building = out.with_name(f".{out.name}.{os.getpid()}.building")
    with disk_errors(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"--out {out}", "lies below something that is a file", "give another place") from error
        free = shutil.disk_usage(out.parent).free
        if free < needed:
            raise UserError(
                f"--out {out}",
                f"needs {needed / 1e9:.2f} GB while it is written, and the disk has {free / 1e9:.2f} free",
                "free space or give a place on another disk",
            )  # fmt: skip
        building.mkdir()
        try:
            yield building
            _check_out(out, force=force)  # it may have come into being meanwhile
            if out.exists():
                aside = building.with_suffix(".replaced")
                out.rename(aside)
                building.rename(out)
                shutil.rmtree(aside)
            else:
                building.rename(out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
