"""What a run of synthesis counts and shows, in a form that can be added up over parts.

Invariant: counts add; samples and examples are those with the smallest hash, so that neither the order of the parts nor
their number changes them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

from data_prep.files import content_id
from data_prep.synth.filters import REFUSALS
from data_prep.synth.generator import STYLES

BASIC = ("refused_query_length", "refused_passage_length", "refused_query_in_passage", "refused_common_title")
_SHOWN = 300
"""Characters of a passage that a sample shows."""


class Tally:
    """Counts and samples.

    Args:
        samples: refused questions kept of each filter.

    Attributes:
        counts: documents, chunks, pairs, one count a style, refusals, duplicates, documents_without_pair.
        styles: style → asked, made, kept and refusals by name.
        languages: language → documents, pairs.
    """

    def __init__(self, samples: int) -> None:
        names = ("documents", "chunks", "pairs", *STYLES, *BASIC, *REFUSALS, "duplicates", "documents_without_pair")
        self.counts: Counter[str] = Counter(dict.fromkeys(names, 0))
        self.styles: dict[str, Counter[str]] = {}
        self.languages: dict[str, dict[str, int]] = {}
        self._most = samples
        self.samples: dict[str, list[tuple[str, dict[str, str]]]] = {}

    def asked(self, style: str) -> None:
        """One ask was put."""
        self.styles.setdefault(style, Counter())["asked"] += 1

    def made(self, style: str) -> None:
        """One question came back."""
        self.styles.setdefault(style, Counter())["made"] += 1

    def kept(self, style: str, language: str) -> None:
        """One pair was written."""
        self.counts["pairs"] += 1
        self.counts[style] += 1
        self.styles.setdefault(style, Counter())["kept"] += 1
        self.languages.setdefault(language, {"documents": 0, "pairs": 0})["pairs"] += 1

    def refused(self, reason: str, style: str, question: str, passage: str) -> None:
        """One question was refused under this name."""
        self.counts[reason] += 1
        self.styles.setdefault(style, Counter())[reason] += 1
        if self._most:
            shown = {"style": style, "question": question[:_SHOWN], "passage": passage[:_SHOWN]}
            self._sample(reason, (content_id(question + passage), shown))

    def _sample(self, reason: str, entry: tuple[str, dict[str, str]]) -> None:
        entries = self.samples.setdefault(reason, [])
        if len(entries) < self._most or entry[0] < entries[-1][0]:
            entries.append(entry)
            entries.sort(key=lambda one: one[0])
            del entries[self._most :]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "counts": dict(self.counts),
            "styles": {style: dict(counter) for style, counter in self.styles.items()},
            "languages": self.languages,
            "samples": self.samples,
        }

    def add(self, told: dict[str, Any]) -> None:
        """Add what `as_json` of another tally gave."""
        self.counts.update(told["counts"])
        for style, counter in told["styles"].items():
            self.styles.setdefault(style, Counter()).update(counter)
        for language, counter in told["languages"].items():
            mine = self.languages.setdefault(language, {"documents": 0, "pairs": 0})
            for name, value in counter.items():
                mine[name] += value
        for reason, entries in told["samples"].items():
            for digest, shown in entries:
                self._sample(reason, (digest, shown))


class Examples:
    """Pairs to read: of each style those with the smallest hash, up to `most` in all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heaps: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}

    def offer(self, style: str, pair: dict[str, Any]) -> None:
        """Take a pair into consideration."""
        digest = content_id(pair["query"] + pair["positives"][0])
        heap = self._heaps.setdefault(style, [])
        entry = (-int(digest, 16), digest, pair)
        if len(heap) < self._most:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def picked(self) -> list[dict[str, Any]]:
        """The examples, the styles in turn."""
        ranked = {style: sorted(heap, reverse=True) for style, heap in sorted(self._heaps.items())}
        picked: list[dict[str, Any]] = []
        for place in range(self._most):
            for style, heap in ranked.items():
                if place < len(heap) and len(picked) < self._most:
                    picked.append({"style": style, **heap[place][2]})
        return picked
