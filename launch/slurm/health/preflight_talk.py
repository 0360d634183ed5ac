"""The controller's side of the pairs: rounds, second tries, and what they say about nodes and links."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from launch.slurm.health.preflight_judge import PreflightNeeds, Verdict
from launch.slurm.health.preflight_pairs import CONNECT_S, Pair, bad_ends, ring_rounds, slow_ends
from launch.slurm.health.preflight_step import Step

REDUCE_S = 60.0  # a pair's all-reduce: import, CUDA context, NCCL; 10 to 20 s where all is well
TRIES = 2  # more measures of what looked slow, each alone: on a shared machine the first may be bad luck
MOST = 8  # pairs that are tried again; where more are bad, the cause is not one node's
SLOW_TRIP = 5.0  # a round trip this many times the median is worth a note, if it is above 1 ms


def disjoint(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The same pairs in rounds in which no node has two."""
    rounds: list[list[Pair]] = []
    for pair in pairs:
        for row in rounds:
            if not any(set(pair) & set(other) for other in row):
                row.append(pair)
                break
        else:
            rounds.append([pair])
    return rounds


class Talk:
    """Pairs of nodes that came and know their address.

    Args:
        step: the nodes.
        networks: node → {"interface", "address", "port", "spare"} as it reported, in the order of the ring.
        needs: what the run needs.
        hear: takes lines in: (until, done, on), as the flight does it.
    """

    def __init__(
        self, step: Step, networks: Mapping[str, Mapping[str, Any]], needs: PreflightNeeds, hear: Callable[..., None]
    ) -> None:
        self._step, self._networks, self._needs, self._hear = step, networks, needs, hear
        self._round = 0
        self.latency: dict[Pair, float] = {}

    def _do(self, pairs: Sequence[Pair], *, reduce: str | None = None) -> dict[Pair, dict[str, dict[str, Any]]]:
        """One round: pair → node → what that end says."""
        self._round += 1
        number, expected = self._round, 2 * len(pairs)
        port = "spare" if reduce else "port"
        order: dict[str, Any] = {
            "do": "reduce" if reduce else "pairs",
            "round": number,
            "pairs": [(a, b, self._networks[a]["address"], self._networks[a][port]) for a, b in pairs],
        }
        if reduce:
            order |= {"backend": reduce, "within_s": REDUCE_S, "interface": self._needs.interface}
        heard: dict[Pair, dict[str, dict[str, Any]]] = {pair: {} for pair in pairs}

        def on(line: dict[str, Any]) -> None:
            if line.get("round") == number and tuple(line["pair"]) in heard:
                heard[tuple(line["pair"])][line["node"]] = line

        self._step.tell(order)
        until = time.monotonic() + (REDUCE_S + 5 if reduce else 3 * CONNECT_S)
        self._hear(self._step, until=until, done=lambda: sum(map(len, heard.values())) == expected, on=on)
        return heard

    @staticmethod
    def _outcome(pair: Pair, ends: Mapping[str, Mapping[str, Any]]) -> tuple[float, str]:
        """(bytes/s of the slower direction, "") or (0, why not); the end that connects knows best why."""
        for node in (pair[1], pair[0]):
            if node not in ends:
                return 0.0, f"{node} gave no answer"
            if "error" in ends[node]:
                return 0.0, str(ends[node]["error"])
        return min(float(end["rate"]) for end in ends.values()), ""

    def exchange(self, verdict: Verdict) -> list[dict[str, Any]]:
        """Every node with its two neighbours of the ring; adds to the verdict, returns the pairs for the record."""
        rates: dict[Pair, float] = {}
        whys: dict[Pair, str] = {}

        def note(rounds: Sequence[Sequence[Pair]]) -> None:
            for row in rounds:
                for pair, ends in self._do(row).items():
                    rate, why = self._outcome(pair, ends)
                    rates[pair] = max(rates.get(pair, 0.0), rate)
                    whys[pair] = "" if rates[pair] else why
                    if "latency_s" in ends.get(pair[1], {}):
                        self.latency[pair] = ends[pair[1]]["latency_s"]

        names = list(self._networks)
        note(ring_rounds(names))
        if len(names) >= 4 and not any(rates.values()):  # bad nodes may alternate: other partners tell
            note(disjoint([pair for half in (names[::2], names[1::2]) for pair in pairwise(half)]))
        one_way = self._other_way({pair: why for pair, why in whys.items() if why})
        for pair in one_way:
            verdict.add("sick", pair[0], self._why(pair, whys[pair]) + "; the other way they talk")
        self._name_silent({pair: whys[pair] for pair in rates if pair not in one_way}, verdict)
        good = {pair: rate for pair, rate in rates.items() if rate}
        for _ in range(TRIES):
            slow, links = slow_ends(good, share=self._needs.slow_below)
            again = [pair for pair in good if set(pair) & set(slow) or pair in links]
            for pair in again[:MOST]:
                note([[pair]])
                good[pair] = rates[pair]
        self._name_slow(good, verdict, what="exchanges bytes")
        self._name_far(verdict)
        return [
            {
                "pair": list(pair),
                **({"gb_per_s": round(rate / 1e9, 3)} if rate else {"error": whys[pair]}),
                **({"latency_us": round(1e6 * self.latency[pair])} if pair in self.latency else {}),
            }
            for pair, rate in rates.items()
        ]

    def _other_way(self, failed: Mapping[Pair, str]) -> set[Pair]:
        """Of the pairs that failed, those that talk when the other end connects."""
        found = set()
        for row in disjoint([(b, a) for a, b in list(failed)[:MOST]]):
            for (a, b), ends in self._do(row).items():
                if self._outcome((a, b), ends)[0]:
                    found.add((b, a))
        return found

    def _why(self, pair: Pair, why: str) -> str:
        first, second = (self._networks[node] for node in pair)
        here = f" {first['interface']}" if first["interface"] else ""
        return f"{pair[1]} ({second['address']}) cannot connect to {pair[0]} ({first['address']}{here}): {why}"

    def _name_silent(self, whys: Mapping[Pair, str], verdict: Verdict) -> None:
        bad, links = bad_ends({pair: not why for pair, why in whys.items()})
        for node in self._networks:
            reasons = [self._why(pair, whys[pair]) for pair in whys if node in pair and whys[pair]]
            if node in bad:
                verdict.add("sick", node, "talks with no partner: " + "; ".join(reasons))
            elif any(node in pair for pair in links):
                verdict.add("sick", node, "; ".join(reasons) + "; both talk with others")

    def _name_slow(self, rates: Mapping[Pair, float], verdict: Verdict, *, what: str) -> None:
        slow, links = slow_ends(rates, share=self._needs.slow_below)
        for node, share in slow.items():
            verdict.add("slow", node, f"{what} at {100 * share:.0f} % of the nodes' median")
        for (first, second), share in links.items():
            for node, other in ((first, second), (second, first)):
                verdict.add("notes", node, f"{what} with {other} at {100 * share:.0f} % of the nodes' median")

    def _name_far(self, verdict: Verdict) -> None:
        if len(self.latency) < 3:
            return
        usual = statistics.median(self.latency.values())
        for pair, trip in self.latency.items():
            if trip > max(SLOW_TRIP * usual, 1e-3):
                verdict.add("notes", pair[0], f"a round trip with {pair[1]} takes {1e3 * trip:.1f} ms")

    def reduce(self, backend: str, verdict: Verdict) -> list[dict[str, Any]]:
        """An all-reduce of each pair of the ring, by the library that training uses."""
        rates: dict[Pair, float] = {}
        whys: dict[Pair, str] = {}
        for row in ring_rounds(list(self._networks)):
            for pair, ends in self._do(row, reduce=backend).items():
                rates[pair], whys[pair] = self._outcome(pair, ends)
        bad, links = bad_ends({pair: not why for pair, why in whys.items()})
        for pair, why in whys.items():
            for node in pair:
                if why and (node in bad or pair in links):
                    other = pair[1 - pair.index(node)]
                    verdict.add("sick", node, f"the {backend} all-reduce with {other} fails: {why}")
        self._name_slow({pair: rate for pair, rate in rates.items() if rate}, verdict, what=f"{backend} all-reduces")
        return [
            {"pair": list(pair), "backend": backend, **({"error": whys[pair]} if whys[pair] else {})}
            | ({"gb_per_s": round(rate / 1e9, 3)} if rate else {})
            for pair, rate in rates.items()
        ]
