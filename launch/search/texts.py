"""The texts that are searched, from one file."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_jsonl, read_lines


def check_k(k: int) -> None:
    """Raise `UserError` where fewer than one text is asked for."""
    if k < 1:
        raise UserError(f"--k {k}", "must be at least 1", "for example --k 5")


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
