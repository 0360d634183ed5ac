"""`rumpun search MODEL TEXTS`: the nearest texts in the terminal, or with `--page` on a local page.

Exit codes: 0, also when ^C ends the page; 2 for a mistake in the arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError

_FOLDER = "an exported folder, any sentence-transformers model, or package:NAME"


def search_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_FOLDER)],
    texts: Annotated[
        Path, typer.Argument(metavar="TEXTS", help=".txt (one text a line) or .jsonl (field text), also .gz")
    ],
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="answer this and end; without it, type queries")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="how many texts to show")] = 5,
    page: Annotated[bool, typer.Option("--page", help="show a page in the browser of this machine instead")] = False,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="N", min=0, max=65535, help="of the page [8765]; 0: any that is free"),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="a second model beside the first, on the page")
    ] = None,
) -> None:
    """Try a model by hand: type a sentence, get the nearest texts with scores."""
    if not page:
        for option, value in (("--port", port), ("--against", against)):
            if value is not None:
                raise UserError(f"{option} {value}", "needs the page", f"add --page, or leave {option} away")
        from launch.search import search

        search(model, texts, query=query, k=k)
        return
    if query is not None:
        raise UserError("--query", "answers in the terminal and ends", "leave --query away, or --page")
    show_page(model, texts, against=against, k=k, port=port)


def show_page(model: str, texts: Path, *, against: str | None, k: int, port: int | None) -> None:
    """Load one model or two, embed the texts, and serve the page until ^C.

    Args:
        model: folder, Hub name or `package:NAME`.
        texts: as `launch.search.read_texts` takes them.
        against: a second model; None for one alone.
        k: how many texts an answer shows unless the form says otherwise.
        port: None for the usual one.

    Raises:
        UserError: k out of range, an unreadable file, a port in use, or a folder without a model.
    """
    from launch.search.index import make_index
    from launch.search.model import load_model
    from launch.search.server import PORT, PageServer, serve
    from launch.search.terminal import terminal_progress
    from launch.search.texts import check_k, read_texts
    from launch.search.view import MAX_K, read_asked
    from launch.search.view import page as make_page

    check_k(k)
    if k > MAX_K:
        raise UserError(f"--k {k}", f"must be at most {MAX_K} on the page", "give fewer, or leave --page away")
    documents = read_texts(texts)
    server = PageServer(PORT if port is None else port)
    try:
        indexes = []
        for name in [model, *([against] if against is not None else [])]:
            progress = terminal_progress()
            indexes.append(make_index(name, load_model(name), documents, progress))
            progress.close()
        about = f"{len(documents):,} texts of {texts.name}"
        server.answer = lambda fields: make_page(read_asked(fields, k=k), indexes, documents, about=about)
        typer.echo(f"{about}\n{server.url}\nOnly this machine can open it (from elsewhere: ssh -L); ^C ends it.")
    except BaseException:
        server.server_close()
        raise
    serve(server)
