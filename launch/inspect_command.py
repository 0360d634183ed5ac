"""`rumpun inspect SHARDS`: what is in a folder of shards, as tables, plain lines or JSON.

Exit codes: 0 every file is what its manifest says; 1 one is not; 2 a mistake in the argument.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_prep.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from data_prep.inspect import CountTokens

_NARROW = 76
"""Columns below which tables become lines."""
_MOST = 20
"""Sources or languages shown; the rest is summed up (`--json` has them all)."""


@dataclass
class Section:
    """One table of the output: a title, its header and its rows, all text."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


def inspect_command(
    shards: Annotated[
        Path,
        typer.Argument(metavar="SHARDS", help="a folder of shards or vectors, a stage of a run, or a whole run folder"),
    ],
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="how many rows to show", min=0)] = 3,
    seed: Annotated[int, typer.Option("--seed", help="which rows: drawn with this seed", min=0)] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="DIR", help="also count tokens, with this tokenizer's folder")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON value")] = False,
) -> None:
    """Look into any shard folder: rows, checksums, sources, languages, lengths, scores, duplicates, sample rows."""
    from rich.console import Console

    from data_prep.inspect import check_files, inspect, shard_folders
    from launch.display import TerminalProgress

    folders = shard_folders(shards)
    count = token_counter(tokenizer) if tokenizer else None
    if len(folders) == 1:
        progress = None if as_json else TerminalProgress()
        facts = inspect(folders[0], rows=rows, seed=seed, count_tokens=count, progress=progress)
        if progress is not None:
            progress.close()
        sections, good = sections_of(facts), facts["good"]
    else:
        found = {str(f): check_files(f) for f in folders}
        facts = {"folders": found}
        good = all(file["state"] == "OK" for files in found.values() for file in files)
        sections = [overview(shards, found)]
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=1))
    else:
        show(sections, Console())
    raise typer.Exit(0 if good else 1)


def token_counter(folder: Path) -> CountTokens:
    """Counts the tokens of a text, special ones left out. Raises `UserError` where the folder has no tokenizer."""
    from data_prep.tokenizer import load_tokenizer

    if not folder.is_dir():
        raise UserError(f"--tokenizer {folder}", "no such folder", "give a model folder or runs/NAME/tokenizer")
    tokenizer = load_tokenizer(folder)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def overview(path: Path, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    """One line for each of several folders."""
    section = Section(f"{path} holds {len(found)} folders; inspect one of them", ("folder", "rows", "size", "files"))
    for folder, files in found.items():
        rows = sum(f["rows"] or 0 for f in files)
        section.rows.append((folder, f"{rows:,}", _size(sum(f["bytes"] or 0 for f in files)), _states(files)))
    return section


def _states(files: Sequence[Mapping[str, Any]]) -> str:
    bad = [f["name"] for f in files if f["state"] != "OK"]
    return f"{len(files)} OK" if not bad else f"{len(bad)} of {len(files)} BAD: {', '.join(bad[:3])}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def sections_of(facts: Mapping[str, Any]) -> list[Section]:
    """The tables that tell the facts of one folder."""
    files = facts["files"]
    head = Section(f"{facts['folder']}: {facts['kind']}", ("", ""))
    head.rows.append(("rows", _number(facts["rows"])))
    size = _size(sum(f["bytes"] or 0 for f in files))
    head.rows.append(("files", f"{size}; {_states(files)}" if files else "none"))
    for name in ("teacher", "role", "dimension", "normalised", "zero_rows", "not_finite_rows"):
        if name in facts:
            head.rows.append((name.replace("_", " "), str(facts[name])))
    head.rows += [(f"repeated {name}", f"{count:,}") for name, count in facts.get("repeated", {}).items()]
    head.rows += [(f"rows with {name}", f"{count:,}") for name, count in facts.get("rows_with", {}).items()]
    sections = [head]
    bad = [f for f in files if f["state"] != "OK"]
    if bad:
        sections.append(Section("files that are not what the manifest says", ("file", "state")))
        sections[-1].rows += [(f["name"], f["state"].removeprefix("BAD: ")) for f in bad]
        sections[-1].rows.append(("", "nothing more is told of a folder with such files: build it again"))
        return sections
    for name in ("sources", "languages"):
        sections += _shares(name, facts.get(name, {}))
    spread = Section("spread", ("of", "mean", "least", "5 %", "25 %", "median", "75 %", "95 %", "most"))
    for name, units in facts.get("lengths", {}).items():
        spread.rows += [_spread(f"{name}: {unit}", told) for unit, told in units.items()]
    spread.rows += [_spread(f"{name} a row", told) for name, told in facts.get("per_row", {}).items()]
    spread.rows += [_spread(name.replace("_", " "), told) for name, told in facts.get("scores", {}).items()]
    sections += [spread] if spread.rows else []
    for row in facts.get("sample", []):
        section = Section(f"row {row['row']}", ("", ""))
        section.rows += [(k, printable(v)) for k, v in row.items() if k != "row" and v not in (None, [], "")]
        sections.append(section)
    return sections


def _shares(name: str, counts: Mapping[str, int]) -> list[Section]:
    if not counts:
        return []
    section, total = Section(name, (name.removesuffix("s"), "rows", "share")), sum(counts.values())
    first = list(counts.items())[:_MOST]
    section.rows += [(printable(n), f"{c:,}", f"{c / total:.1%}") for n, c in first]
    if rest := list(counts.values())[_MOST:]:
        section.rows.append((f"{len(rest)} more", f"{sum(rest):,}", f"{sum(rest) / total:.1%}"))
    return [section]


def _spread(name: str, told: Mapping[str, Any]) -> Sequence[str]:
    if not told["count"]:
        return (name, "-", *["-"] * 7)
    return (name, _number(told["mean"]), *(_number(v) for v in told["quantiles"].values()))


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def printable(value: Any, most: int = 300) -> str:
    """A value on one line: control characters, which could drive the terminal, are shown as escapes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= most else f"{text[:most]}…"
    return "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)


def show(sections: Sequence[Section], console: Console) -> None:
    """Tables on a terminal that is wide enough, plain lines elsewhere."""
    from rich.table import Table
    from rich.text import Text

    for section in sections:
        if console.is_terminal and console.width >= _NARROW:
            table = Table(title=Text(section.title), title_justify="left", show_header=any(section.header))
            for i, name in enumerate(section.header):
                right = i > 0 and len(section.header) > 2
                table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
            for row in section.rows:
                table.add_row(*map(Text, row))
            console.print(table)
            continue
        console.print(f"\n{section.title}", markup=False, highlight=False, soft_wrap=True)
        for line in plain_lines(section):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def plain_lines(section: Section) -> list[str]:
    """A table as lines: `name: value`, or aligned columns where there are more than two."""
    if len(section.header) == 2:
        return [f"  {name}: {value}" if name else f"  {value}" for name, value in section.rows]
    rows = [section.header, *section.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(section.header))]
    return [
        "  "
        + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
