"""What an import read, kept and refused: counts by reason with samples to read, written as `report.json`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.files import write_json
from data_prep.pairs.formats import encodable
from data_prep.pairs.rows import Table

SAMPLES = 10
"""Samples kept of each reason, the first ones."""
_EXCERPT = 200
NOT_A_FAULT = ("duplicates", "evaluation_overlap", "below_min_score", "labelled_no_pair")
"""Reasons for which a sound pair is left out; all others are faults of the row."""


class Tally:
    """Counts of an import, and of each of its tables.

    Attributes:
        counts: over all tables. faults: rows of the current table that are no pairs, `read` its rows so far.
        first_fault: where the current table went wrong first, and why.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.read = self.faults = 0
        self.first_fault = ""
        self._faulty = 0
        self._formats: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._tables: list[dict[str, Any]] = []
        self._reasons: dict[str, list[dict[str, str]]] = {}

    def begin(self, table: Table) -> None:
        """A new table."""
        self.read = self.faults = self._faulty = 0
        self.first_fault = ""
        self.counts["files"] += 1
        self._tables.append({"name": table.path.name, "kind": table.kind, "read": 0, "kept": 0, "left_out": {}})

    def row(self) -> None:
        """One more row was read."""
        self.read += 1
        self.counts["read"] += 1
        self._tables[-1]["read"] += 1

    def refuse(self, reason: str, where: str, detail: str, text: str = "") -> None:
        """A row or a pair of it is left out; `detail` says why, `text` is what it is about."""
        name = reason if reason in NOT_A_FAULT else f"refused_{reason}"
        if reason not in NOT_A_FAULT:
            self.faults += self._faulty != self.read  # a row may hold several pairs
            self._faulty = self.read
            self.first_fault = self.first_fault or f"{where}: {detail}"
        self.counts[name] += 1
        left_out = self._tables[-1]["left_out"]
        left_out[name] = left_out.get(name, 0) + 1
        samples = self._reasons.setdefault(name, [])
        if len(samples) < SAMPLES:
            # places without folders: the report of equal data is equal on every machine
            place = Path(where.rpartition(", ")[0]).name + ", " + where.rpartition(", ")[2]
            samples.append({"where": place, "why": encodable(detail), "text": encodable(text[:_EXCERPT])})

    def keep(self, row: dict[str, Any], found: str) -> None:
        """A pair was kept; `found` is its format."""
        self.counts["kept"] += 1
        self.counts["positives"] += len(row["positives"])
        self.counts["negatives"] += len(row["negatives"])
        self._tables[-1]["kept"] += 1
        self._formats[found] += 1
        self._sources[row["source"]] += 1
        self._languages[row["language"]] += 1

    def write(self, path: Path) -> None:
        """Write the report."""
        write_json(
            path,
            {
                "counts": dict(self.counts),
                "tables": self._tables,
                "formats": dict(self._formats),
                "sources": dict(self._sources),
                "languages": dict(self._languages),
                "left_out": {
                    name: {"count": self.counts[name], "samples": samples} for name, samples in self._reasons.items()
                },
            },
        )
