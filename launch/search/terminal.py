"""A model in the terminal: embed a file of texts, answer queries with the nearest ones. Nothing is kept on disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from launch.search.model import load_model
from launch.search.texts import check_k, read_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder
    from launch.display import TerminalProgress


def search(model: str, texts: Path, *, query: str | None, k: int) -> None:
    """Print the `k` texts nearest to `query`; without one, ask for queries until an empty line or the end of input.

    Args:
        model: folder, Hub name or `package:NAME`.
        texts: `.txt` (one text a line) or `.jsonl` (field `text`), each also with `.gz`.
        query: answered once; None for a prompt.
        k: how many texts to print, at least 1; fewer are printed where the file holds fewer.

    Raises:
        UserError: k < 1, an empty or unreadable file, an empty query, or a folder that holds no model.
    """
    check_k(k)
    if query is not None and not query.strip():
        raise UserError("--query", "is empty", "give it some words, or leave --query away for a prompt")
    documents = read_texts(texts)
    embedder = load_model(model)
    progress = terminal_progress()
    vectors = embedder.embed(documents, role="passage", progress=progress)
    progress.close()
    progress.note(f"{len(documents):,} texts from {texts}, {embedder.dimension} dimensions each")
    for words in [query] if query is not None else _questions():
        show(words, documents, vectors, embedder, k=k)


def terminal_progress() -> TerminalProgress:
    """Progress that stays out of the way of the answers."""
    from launch.display import TerminalProgress

    # The answers belong on standard output; a program that reads them wants nothing else there.
    return TerminalProgress(stream=sys.stdout if sys.stdout.isatty() else sys.stderr)


def _questions() -> Iterator[str]:
    if sys.stdin.isatty():
        print("Type a query; an empty line or ^D ends.", flush=True)
    while True:
        try:
            words = input("query> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError("the query", f"is not UTF-8 ({error.reason})", "set the terminal to UTF-8") from error
        if not words:
            return
        yield words


def show(query: str, documents: list[str], vectors: NDArray[np.float32], embedder: Embedder, *, k: int) -> None:
    """Print rank, score and text of the `k` documents nearest to `query`; equal scores keep the order of the file."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    scores = vectors @ embedder.embed([query], role="query")[0]
    best = np.argsort(-scores, kind="stable")[:k]
    console = Console()
    if not console.is_terminal:
        for rank, row in enumerate(best, start=1):
            print(f"{rank}\t{scores[row]:.4f}\t{' '.join(documents[row].split())}", flush=True)
        return
    table = Table(title=Text(query), title_justify="left", expand=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("text", overflow="ellipsis", max_width=max(20, console.width - 22))
    for rank, row in enumerate(best, start=1):
        table.add_row(str(rank), f"{scores[row]:.4f}", Text(" ".join(documents[row].split())[:600]))
    console.print(table)
