"""What the corpus stage counted and removed, with samples: `report.json`, and the lines that a terminal shows.

A tally is a JSON object, so that workers can write one for each part; tallies are added in the order of the parts, and
samples are the first ones of the corpus, so neither the cut into parts nor the workers show in a report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

SAMPLES = 10
_SHOWN_CHARACTERS = 240
_MOST_SOURCES, _MOST_GROUPS = 200, 20_000
_OTHERS = "(other sources)"
_SEPARATOR = "\t"

RULES: dict[str, str] = {
    "bad_lines": "could not be read",
    "oversize": "longer than max_line_mb",
    "too_short": "under min_chars",
    "too_long": "over quality.max_chars",
    "few_letters": "too few letters",
    "many_digits": "too many digits",
    "many_symbols": "too many symbols",
    "many_placeholders": "mostly placeholders",
    "word_length": "words too short or too long",
    "repeated_lines": "repeats its lines",
    "frequent_words": "mostly the same few words",
    "repeated_words": "repeats runs of words",
    "dropped_phrase": "holds a phrase of drop_phrases",
    "other_language": "not in language.keep",
    "evaluation_overlap": "text of an evaluation set",
    "duplicates": "exact copy of an earlier text",
    "near_duplicates": "near copy of an earlier text",
    "over_limit": "beyond max_documents_per_file",
    "held_out": "held out of training",
}
"""Every reason for which a document does not reach the corpus, in the order in which they are asked."""


class Tally:
    """Counts by name, counts by source and language, and the first samples of each rule."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.groups: dict[str, Counter[str]] = {}
        self.samples: dict[str, list[Any]] = {}

    def count(self, name: str, source: str = "", language: str = "", amount: int = 1) -> None:
        """Count something, also for a source and language where one is given."""
        self.counts[name] += amount
        if source:
            group = f"{source}{_SEPARATOR}{language}"
            if group not in self.groups and len(self.groups) >= _MOST_GROUPS:  # a source of its own for each document
                group = f"{_OTHERS}{_SEPARATOR}{language}"
            self.groups.setdefault(group, Counter())[name] += amount

    def sample(self, name: str, shown: Any) -> None:
        """Keep a sample of a rule, if it is among the first."""
        kept = self.samples.setdefault(name, [])
        if len(kept) < SAMPLES:
            kept.append(shown)

    def wants(self, name: str) -> bool:
        """Whether another sample of a rule would be kept."""
        return len(self.samples.get(name, ())) < SAMPLES

    def add(self, told: dict[str, Any]) -> None:
        """Add the JSON form of the tally of the next part."""
        self.counts.update(told["counts"])
        for group, counts in told["groups"].items():
            if group not in self.groups and len(self.groups) >= _MOST_GROUPS:
                group = f"{_OTHERS}{_SEPARATOR}{group.rsplit(_SEPARATOR, 1)[1]}"
            self.groups.setdefault(group, Counter()).update(counts)
        for name, samples in told["samples"].items():
            for shown in samples:
                self.sample(name, shown)

    def to_json(self) -> dict[str, Any]:
        """Counts, groups and samples as a JSON value."""
        return {
            "counts": dict(self.counts),
            "groups": {name: dict(counts) for name, counts in self.groups.items()},
            "samples": self.samples,
        }


def shown(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1].rstrip()}…"


def report_of(tally: Tally) -> dict[str, Any]:
    """The report of a whole run.

    `counts`: all counts by name. `rules`: for each rule that may remove documents its name, meaning, count, share of
    what was read, and samples. `private`: for each kind of personal data how many were replaced, with masked samples.
    `sources`: rows of source, language, read, kept, characters, and removed by rule, the largest first. `languages`:
    the same by language alone. `other`: samples of what was counted but not removed (repaired texts, repeated ids).
    """
    read = max(1, tally.counts["read"] + tally.counts["bad_lines"] + tally.counts["oversize"])
    rules = [
        {
            "rule": rule,
            "meaning": meaning,
            "removed": tally.counts[rule],
            "share": tally.counts[rule] / read,
            "samples": tally.samples.get(rule, []),
        }
        for rule, meaning in RULES.items()
    ]
    private = [
        {"kind": name.removeprefix("private_"), "replaced": count, "samples": tally.samples.get(name, [])}
        for name, count in sorted(tally.counts.items())
        if name.startswith("private_") and name != "private_documents"
    ]
    languages: dict[str, Counter[str]] = {}
    for group, counts in tally.groups.items():
        languages.setdefault(_SEPARATOR + group.rsplit(_SEPARATOR, 1)[1], Counter()).update(counts)
    return {
        "counts": {name: tally.counts[name] for name in sorted(tally.counts)},
        "rules": rules,
        "private": private,
        "sources": _rows(_largest(tally.groups)),
        "languages": _rows(languages.items()),
        "other": {name: tally.samples[name] for name in ("repaired", "duplicate_ids") if name in tally.samples},
    }


def _largest(groups: dict[str, Counter[str]]) -> list[tuple[str, Counter[str]]]:
    """The groups of the sources that were read most; all others are one."""
    by_source: Counter[str] = Counter()
    for group, counts in groups.items():
        by_source[group.rsplit(_SEPARATOR, 1)[0]] += counts["read"]
    named = {source for source, _ in sorted(by_source.items(), key=lambda item: (-item[1], item[0]))[:_MOST_SOURCES]}
    found: dict[str, Counter[str]] = {}
    for group, counts in groups.items():
        source, language = group.rsplit(_SEPARATOR, 1)
        name = source if source in named else _OTHERS
        found.setdefault(f"{name}{_SEPARATOR}{language}", Counter()).update(counts)
    return list(found.items())


def _rows(groups: Iterable[tuple[str, Counter[str]]]) -> list[dict[str, Any]]:
    rows = []
    for group, counts in groups:
        source, language = group.rsplit(_SEPARATOR, 1)
        removed = {rule: counts[rule] for rule in RULES if counts[rule]}
        row = {"source": source, "language": language, "read": counts["read"], "kept": counts["kept"]}
        rows.append({**row, "characters": counts["characters"], "removed": removed})
    return sorted(rows, key=lambda row: (-row["read"], row["source"], row["language"]))


def report_lines(report: dict[str, Any]) -> list[str]:
    """A report as lines of plain text: what was read, what each rule removed, what stays, in which languages."""
    counts = report["counts"]
    lines = [f"{counts.get('read', 0):>12,}  documents read from {counts.get('files', 0):,} files"]
    for rule in report["rules"]:
        if rule["removed"]:
            lines.append(f"{-rule['removed']:>12,}  {rule['rule']}: {rule['meaning']} ({rule['share']:.2%})")
    kept, characters = counts.get("kept", 0), counts.get("characters", 0)
    lines.append(f"{kept:>12,}  kept ({characters:,} characters)")
    for part in report["private"]:
        lines.append(f"{part['replaced']:>12,}  <{part['kind'].upper()}> in place of personal data")
    if counts.get("duplicate_ids"):
        lines.append(f"{counts['duplicate_ids']:>12,}  ids stand more than once in their file (all rows are kept)")
    languages = ", ".join(f"{row['language']} {row['kept']:,}" for row in report["languages"] if row["kept"])
    return [*lines, *([f"{'':>12}  languages: {languages}"] if languages else [])]
