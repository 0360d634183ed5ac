"""Text from elsewhere in Markdown and YAML: it shows as it is and can be nothing else."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any

from train.hub.client import scrub

_MARKS = re.compile(r"([\\`*_\[\]|~#])")
_PATH = re.compile(r"(?<![\w.}/:$~-])(?:~|/[\w.@+-]+)(?:/[\w.@+ -]+)*/(?=[^\s\"'/]+)")
MISSING = "not recorded"


def text(value: Any) -> str:
    """Any text as one line of Markdown that renders as that text; empty ones say that nothing is recorded."""
    line = scrub(value) if value is not None and value != "" else ""
    if not line:
        return MISSING
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", line)


def number(value: Any, digits: int = 0) -> str:
    """A number with thousands marked, or that it is not recorded."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return MISSING
    return f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of cells that are Markdown already; the first column is left, the others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def fenced(content: str, language: str) -> list[str]:
    """A block of code whose fence no line of the content can close."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", content.rstrip("\n"), fence]


def yaml_lines(values: dict[str, Any], depth: int = 0) -> list[str]:
    """Front matter: every text as a JSON string, which is YAML too; None and empty ones are left out."""
    lines = []
    for key, value in values.items():
        if value in (None, "", [], {}):
            continue
        lines += _entry(f"{'  ' * depth}{key}:", value, depth)
    return lines


def _entry(head: str, value: Any, depth: int) -> list[str]:
    if isinstance(value, dict):
        return [head, *yaml_lines(value, depth + 1)]
    if not isinstance(value, list):
        return [f"{head} {_scalar(value)}"]
    lines = [head]
    for item in value:
        if isinstance(item, dict):
            inner = yaml_lines(item, depth + 1)
            lines += [f"{'  ' * depth}- {inner[0].lstrip()}", *inner[1:]]
        else:
            lines.append(f"{'  ' * depth}- {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    return json.dumps(scrub(value) if isinstance(value, str) else value, ensure_ascii=False)


def recipe_text(recipe: str) -> str:
    """A recipe without its comments, with the folders of this machine cut from paths, and without tokens."""
    bare = "\n".join(line for line in (re.sub(r"\s*(?:^|  )#.*$", "", row) for row in recipe.splitlines()) if line)
    try:
        if tomllib.loads(bare) != tomllib.loads(recipe):
            bare = recipe
    except tomllib.TOMLDecodeError:
        bare = recipe
    return re.sub(r"hf_[A-Za-z0-9]{20,}", "<token>", _PATH.sub("…/", bare))
