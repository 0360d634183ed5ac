"""Try a model by hand: embed a file of texts, then answer queries with the nearest ones. Nothing is kept on disk.

The model is anything that gives one vector a text: an exported folder, a folder of a run, a sentence-transformers
folder, or the name of one (on the Hub, or `package:NAME` for one that was installed as a Python package).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.files import read_jsonl, read_lines

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder
    from launch.display import TerminalProgress

# Where a model may lie below a folder that was given, and the file that shows it.
_PLACES = (".", "model", "export/model", "finetune/model")
_SENTENCE_TRANSFORMERS, _ENCODER = "modules.json", "encoder.json"


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
    if k < 1:
        raise UserError(f"--k {k}", "must be at least 1", "for example --k 5")
    if query is not None and not query.strip():
        raise UserError("--query", "is empty", "give it some words, or leave --query away for a prompt")
    documents = read_texts(texts)
    embedder = load_model(model)
    progress = _progress()
    vectors = embedder.embed(documents, role="passage", progress=progress)
    progress.close()
    progress.note(f"{len(documents):,} texts from {texts}, {embedder.dimension} dimensions each")
    for words in [query] if query is not None else _questions():
        show(words, documents, vectors, embedder, k=k)


def read_texts(path: Path) -> list[str]:
    """Texts of a `.txt` or `.jsonl` file, plain or `.gz`, without blank ones. Raises `UserError` if there is none."""
    if path.is_dir():
        raise UserError(str(path), "is a folder", "give one .txt or .jsonl file")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("txt", "jsonl"):
        raise UserError(
            str(path), "is not a .txt or .jsonl file (or one with .gz)", 'write one text a line, or {"text": …} a line'
        )
    if kind == "txt":
        found = [line.strip() for _, line in read_lines(path)]
    else:
        found = [str(row["text"]).strip() for _, row in read_jsonl(path, required=("text",))]
    texts = [text for text in found if text]
    if not texts:
        raise UserError(str(path), "holds only blank lines", "put at least one text into it")
    return texts


def load_model(model: str) -> Embedder:
    """Load any model by name or folder. Raises `UserError` naming every place that was looked at."""
    from transformers.utils.logging import disable_progress_bar

    from data_prep.embed.teacher import TeacherConfig, fit_teacher
    from data_prep.progress import Progress

    disable_progress_bar()
    name = model
    folder = Path(model).expanduser()
    if folder.is_dir():
        place = _find_model(folder)
        if (place / _ENCODER).is_file() and not (place / _SENTENCE_TRANSFORMERS).is_file():
            from train.encoder import load_encoder

            encoder: Embedder = load_encoder(place)
            return encoder
        name = str(place)
    elif folder.exists() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise UserError(f"model {model!r}", "is no folder", "give a model folder, such as runs/NAME/export/model")
    with tempfile.TemporaryDirectory(prefix="rumpun-search-") as scratch:
        return fit_teacher(
            TeacherConfig(kind="sentence-transformers", model=name), [], out=Path(scratch), seed=0, progress=Progress()
        )


def _find_model(folder: Path) -> Path:
    for place in _PLACES:
        if any((folder / place / mark).is_file() for mark in (_SENTENCE_TRANSFORMERS, _ENCODER)):
            return folder / place
    looked = ", ".join(str(Path(place) / _SENTENCE_TRANSFORMERS) for place in _PLACES)
    raise UserError(
        f"model folder {folder}",
        f"holds no model (looked for {looked}, and for {_ENCODER} in the same places)",
        "give the folder that an export wrote, such as runs/NAME/export/model",
    )


def _progress() -> TerminalProgress:
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
