"""`rumpun robust MODEL… --sets GLOB…`: what any models lose on damaged queries and documents, without a recipe.

A model is a folder (exported, of a run, sentence-transformers), a Hub id, `package:NAME` or `bm25`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import UserError

if TYPE_CHECKING:
    from eval.robustness.config import RobustnessConfig
    from eval.systems.listing import System

_BM25 = "bm25"


def robust_command(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="bm25, a model folder, a Hub id, or package:NAME; any number"),
    ],
    sets: Annotated[
        list[str], typer.Option("--sets", metavar="GLOB", help="folders in BEIR layout; may be given several times")
    ],
    kinds: Annotated[
        str | None, typer.Option("--kinds", metavar="A,B", help="kinds of damage, with commas between; unset: all")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option("--strengths", metavar="X,Y", help="shares of the words; unset: 0.1,0.3,1")
    ] = None,
    queries: Annotated[int, typer.Option("--queries", metavar="N", min=2, help="drawn from each set")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the queries, the damage and the intervals")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="also write robustness.json and robustness.html there")
    ] = None,
) -> None:
    """Damage the queries of evaluation sets and show what recall each model loses."""
    import tempfile

    from data_prep.evaluation_sets import find_sets
    from data_prep.files import read_json, write_atomically
    from eval.robustness.measure import measure
    from eval.robustness.table import robustness_lines
    from launch.display import TerminalProgress

    config = config_of(kinds, strengths, queries)
    systems = [system_of(model) for model in models]
    folders = find_sets(sets)
    if out is not None:
        _make(out)
    progress = TerminalProgress()
    with tempfile.TemporaryDirectory(prefix="rumpun-robust-") as scratch:
        place = out or Path(scratch)
        measure(config, sets=folders, systems=systems, out=place, seed=seed, progress=progress)
        results = read_json(place / "robustness.json")
    progress.close()
    typer.echo("\n".join(robustness_lines(results)))
    if out is not None:
        from eval.robustness.page import page

        write_atomically(out / "robustness.html", page(results, title="Robustness").encode())
        typer.echo(f"\nwritten: {out / 'robustness.json'}, {out / 'robustness.html'}")


def _make(out: Path) -> None:
    """Make the folder before minutes are spent on what goes into it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}", "is a file", "give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}", f"cannot be made ({error.strerror})", "choose a folder of yours") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"--out {out}", "may not be written to", "choose a folder of yours")


def config_of(kinds: str | None, strengths: str | None, queries: int) -> RobustnessConfig:
    """The settings of the command line. Raises `UserError` for a kind that there is not or a strength that is none."""
    from pydantic import ValidationError

    from eval.robustness.config import RobustnessConfig

    given: dict[str, object] = {"queries_per_set": queries}
    if kinds is not None:
        given["kinds"] = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    if strengths is not None:
        try:
            given["strengths"] = [float(part) for part in strengths.split(",")]
        except ValueError as error:
            raise UserError(f"--strengths {strengths}", "is no list of numbers", "such as 0.1,0.3,1") from error
    try:
        return RobustnessConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{first['loc'][0]}"
        value = kinds if option == "--kinds" else strengths
        fix = "name some of these" if option == "--kinds" else "such as 0.1,0.3,1"
        raise UserError(f"{option} {value}", first["msg"].removeprefix("Value error, "), fix) from error


def system_of(model: str) -> System:
    """A model of the command line as a system; a package or path that is not there is told at once."""
    from data_prep.embed.teacher import model_path
    from eval.systems.bm25 import BM25Ranker
    from eval.systems.dense import PACKAGE_PREFIX, DenseRanker
    from eval.systems.listing import System
    from eval.systems.ranker import Ranker

    if model == _BM25:
        return System(_BM25, "bm25", "BM25", BM25Ranker)
    model_path(model)
    folder = Path(model).expanduser()
    if (folder / "qrels.tsv").is_file():  # the shell has filled in a pattern
        raise UserError(f"MODEL {model}", "is an evaluation set", "put quotes around the pattern: --sets 'DIR/*'")
    label = _label(str(folder.resolve()) if folder.is_dir() else model.removeprefix(PACKAGE_PREFIX))

    def load() -> Ranker:
        from launch.search import load_model

        return DenseRanker(load_model(model), name=label)

    return System(label, "baseline", model, load)


def _label(name: str) -> str:
    """A short name: of runs/NAME/export/model the NAME, of a Hub id its second half."""
    parts = [part for part in name.split("/") if part]
    while len(parts) > 1 and parts[-1] in ("model", "export", "finetune"):
        parts.pop()
    return parts[-1].removeprefix("gt_").replace("_", "-") if parts else name
