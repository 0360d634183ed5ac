"""`rumpun mteb MODEL`: the evaluation sets of this project, and official tasks, by mteb's own code.

Exit codes: 0 every task ran; 2 a mistake that the user can mend (mteb missing, no set, no network).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from data_prep.errors import UserError

_HUB_WITHIN_S = 10.0


def mteb_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="a model folder, a run's folder, package:NAME, or a name on the Hub"),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--sets", metavar="GLOB", help="folders in BEIR layout and STS files sts_*.jsonl[.gz]; repeatable"
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="an official task of mteb, fetched from the Hub; repeatable"),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="what results call the model (default: MODEL)")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write mteb's result files and table.md there")
    ] = None,
) -> None:
    """Evaluate a model with mteb: our sets offline, official tasks where the network allows."""
    if not sets and not task:
        raise UserError(
            "rumpun mteb", "has nothing to run", "give --sets GLOB, such as 'data/eval_dev/*', or --task NAME"
        )
    from launch.cli import quiet_libraries

    quiet_libraries()
    from eval.mteb_tasks import MtebModel, markdown_table, need_mteb, official_task, run_task

    need_mteb()
    jobs: list[Callable[[], Any]] = [*_found(sets or []), *(partial(official_task, wanted) for wanted in task or [])]
    if task:
        _settle_offline()  # before anything loads the Hub's client, which looks at the environment once
    from data_prep.files import write_atomically
    from launch.search.model import load_model

    called = name or model.rstrip("/").rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    wrapped = MtebModel(load_model(model), name=called)
    results: list[dict[str, Any]] = []
    for number, job in enumerate(jobs, start=1):
        made = job()
        typer.echo(f"[{number}/{len(jobs)}] {made.metadata.name}", err=True)
        results.append(run_task(wrapped, made, out=out))
    table = markdown_table(called, results)
    if out is not None:
        write_atomically(out / "table.md", table.encode())
    typer.echo(table)


def _found(patterns: list[str]) -> Iterator[Callable[[], Any]]:
    """How to make the task of every folder and file that the patterns name, which are read when their turn comes."""
    from eval.mteb_tasks import retrieval_task, similarity_task

    seen: dict[Path, None] = {}
    for pattern in patterns:
        paths = [Path(found) for found in sorted(glob.glob(os.path.expanduser(pattern)))]
        good = [p for p in paths if (p / "qrels.tsv").is_file() or (p.is_file() and p.name.startswith("sts_"))]
        if not good:
            raise UserError(
                f"--sets {pattern!r}",
                "matches no folder with a qrels.tsv and no file sts_*.jsonl or sts_*.jsonl.gz",
                "give folders in BEIR layout (corpus.jsonl, queries.jsonl, qrels.tsv); see docs/evaluation.md",
            )
        seen.update(dict.fromkeys(good))
    names = [path.name for path in seen]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"--sets: {twice[0]!r}", "two sets have this name", "rename one, or leave it out")
    for path in seen:
        make = similarity_task if path.is_file() else retrieval_task
        yield partial(make, path)


def _settle_offline() -> None:
    """Where the Hub does not answer, look only among what was fetched before: its client would try for minutes."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return
    import urllib.error
    import urllib.request

    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=_HUB_WITHIN_S).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"
        typer.echo(f"{place} does not answer: only tasks that were fetched before can run", err=True)
