"""`rumpun ledger verify RUN`: every sample exactly once, proven from the ledgers of a run.

Exit codes: 0 every ledger is proven; 1 one is not, and the line that is wrong is named; 2 a mistake in the argument.
"""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_prep.errors import UserError

if TYPE_CHECKING:
    from train.history.verify import Data

ledger_app = typer.Typer(help="Look at what training used.", no_args_is_help=True)

LEDGER = "ledger.jsonl"
_WIDEST = 100


@ledger_app.command("verify")
def ledger_verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or the name of one")],
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="where run folders are")] = Path("runs"),
) -> None:
    """Prove that training used every sample exactly once, whatever interrupted it."""
    from train.history.records import LedgerFault

    folder = find_run(run, runs)
    proven = True
    typer.echo(str(folder))
    for ledger in ledgers_of(folder):
        name = ledger.parent.relative_to(folder).name or folder.name
        typer.echo(f"\n{name}")
        try:
            sentences = prove(folder, ledger)
        except LedgerFault as fault:
            proven = False
            sentences = [f"NOT PROVEN. Line {fault.line} of {fault.path}: {fault.rule}.", f"Fix: {fault.fix}."]
        for sentence in sentences:
            typer.echo(_wrapped(sentence))
    raise typer.Exit(0 if proven else 1)


def find_run(run: str, runs: Path) -> Path:
    """The folder of a run. Raises `UserError` with the nearest names where there is none."""
    for folder in (Path(run), runs / run):
        if folder.is_dir():
            return folder
    known = sorted(p.name for p in runs.iterdir() if p.is_dir()) if runs.is_dir() else []
    near = difflib.get_close_matches(Path(run).name, known, 3)
    fix = f"did you mean {' or '.join(near)}? " if near else ""
    if known:
        fix += f"runs in {runs}: {', '.join(known)}"
    else:
        fix += f"{runs} holds no runs; --runs DIR says where they are"
    raise UserError(f"run {run!r}", "no such run", fix)


def ledgers_of(folder: Path) -> list[Path]:
    """The ledgers of a run, in the order of its phases. Raises `UserError` where there is none."""
    found = [p for p in sorted(folder.glob(f"history/*/{LEDGER}")) if ".kept-" not in p.parent.name]
    # training that was called from Python keeps its history beside its output
    found = found or [p for p in (folder / "history" / LEDGER, folder / LEDGER) if p.exists()]
    if not found:
        raise UserError(
            f"run {folder}", "has no ledger: no training phase of it has started", "train first, with `rumpun run`"
        )
    return sorted(found, key=lambda p: p.parent.name != "pretrain")


def prove(folder: Path, ledger: Path) -> list[str]:
    """The sentences of the proof. Raises `LedgerFault` where there is none."""
    from train.history.verify import verify

    mark = newest_mark(ledger.parent)
    return verify(ledger, shards=data_of(folder, ledger), mark=mark).sentences()


def newest_mark(history: Path) -> Mapping[str, Any] | None:
    """How far the ledger was when the newest checkpoint that can be read was written; None before any."""
    from train.history.folder import step_name, steps_in
    from train.history.manifest import Damaged, NewerFormat, read_manifest

    checkpoints = history / "checkpoints"
    for step in steps_in(checkpoints):
        with suppress(Damaged, NewerFormat, OSError):
            mark: Mapping[str, Any] | None = read_manifest(checkpoints / step_name(step))["facts"].get("ledger")
            return mark
    return None


def data_of(folder: Path, ledger: Path) -> Mapping[str, Data] | None:
    """The data that a phase was trained on, where the run folder still holds them."""
    from data_prep.shards import Shards
    from train.history.ledger import read_records
    from train.pair_stream import open_source

    header = next(read_records(ledger), {})
    places = {"tokens": folder / "tokens" / "train", "mine": folder / "mine" / "pairs"}
    stages = {s["name"]: s["name"].partition(":")[0] for s in header.get("sources", [])}
    found = {name: places.get(stage, folder / stage) for name, stage in stages.items()}
    if not found or not all((place / "manifest.json").exists() for place in found.values()):
        return None
    return {n: Shards(place, "tokens") if n == "tokens" else open_source(n, place) for n, place in found.items()}


def _wrapped(text: str) -> str:
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    return textwrap.fill(
        text, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
