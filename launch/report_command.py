"""`rumpun compare RUN [RUN…]`: the page of one run written anew, or one page that compares several.

Exit codes: 0, or 2 for a mistake in the arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError
from launch.ledger_command import find_run

_RUN_PAGE, _COMPARISON = "report.html", "compare.html"


def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="run folders, or names of runs; the first is what the others are compared with"
        ),
    ],
    folder: Annotated[Path, typer.Option("--runs", metavar="DIR", help="where run folders are")] = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="the page [RUN/report.html of one run, DIR/compare.html of several]"
        ),
    ] = None,
) -> None:
    """Compare runs on one HTML page: figures with paired differences, recipes, curves, cost. One run: its page anew."""
    found = [find_run(run, folder) for run in runs]
    page = out if out is not None else _usual(found)
    check_out(page, found)
    if len(found) == 1:
        # Beside the stages, not among them: what a stage committed is that stage's to change.
        from data_prep.files import write_atomically
        from eval.report.page import page_of

        write_atomically(page, page_of(found[0], title=found[0].resolve().name).encode())
        typer.echo(f"page of {found[0]}: {page}")
        return
    from eval.report.compare import write_comparison

    counts = write_comparison(found, out=page)
    sets = f"{counts['sets']} shared set{'s' if counts['sets'] != 1 else ''}, {counts['paired']} of them paired"
    typer.echo(f"{counts['runs']} runs on {sets}: {page}")


def _usual(found: list[Path]) -> Path:
    return found[0] / _RUN_PAGE if len(found) == 1 else found[0].resolve().parent / _COMPARISON


def check_out(page: Path, runs: list[Path]) -> None:
    """Raise `UserError` where the page cannot stand there, or would replace a file of a run's stages."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {page}", "does not end with .html", "give the name of a page, such as compare.html")
    if page.is_dir() or not page.resolve().parent.is_dir():
        raise UserError(
            f"--out {page}",
            "is a folder" if page.is_dir() else "stands in no folder",
            "name a file in a folder that exists",
        )
    for run in runs:
        stage = next((folder for folder in page.resolve().parents if folder.parent == run.resolve()), None)
        if stage is not None and (stage / "stage.json").exists():
            rule = f"is in the stage {stage.name} of {run.name}, whose files are its own"
            raise UserError(f"--out {page}", rule, f"write to {run / _RUN_PAGE}, or elsewhere")
