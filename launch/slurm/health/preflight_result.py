"""What a preflight found, for the job that acts on it and for a person who reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

THE_STEP_ENDED = "the step ended"  # how a reason begins that is no node's fault


@dataclass(frozen=True)
class PreflightResult:
    """What a preflight found.

    Attributes:
        seconds: how long it took.
        came: nodes that were heard.
        missing: nodes that were expected and not heard.
        sick: node → what would break a run on it.
        slow: node → in what it is slow, measured twice.
        notes: node → what a run survives and a person wants to know.
        facts: JSON: "parts" (seconds by part of the preflight), "nodes" (name → its rates, clock, address, seconds by
            part), "pairs", "code", "versions"; where nodes are missing, "unheard" (node → how) and "said" (the
            scheduler's own words).
    """

    seconds: float
    came: tuple[str, ...]
    missing: tuple[str, ...]
    sick: dict[str, str]
    slow: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Nobody is missing and nobody is sick. Slow nodes are slow, but right."""
        return not self.missing and not self.sick

    def blamed(self) -> dict[str, tuple[str, str]]:
        """Node → (kind, why) for what is the node's own fault, as `launch.slurm.health.memory.remember` takes it.

        What all nodes of several share is no node's fault: a wrong folder, a profile's wrong interface. Nor is the end
        of the whole step, by a signal or because the scheduler refused it.
        """
        everyone = len(self.came) > 1 and set(self.came) <= set(self.sick)
        unheard = self.facts.get("unheard", {})
        found = {
            n: ("roll_call_missing", unheard[n]) for n in self.missing if not unheard[n].startswith(THE_STEP_ENDED)
        }
        found |= {node: ("slow", why) for node, why in self.slow.items()}
        return found | ({} if everyone else {node: ("sick", why) for node, why in self.sick.items()})

    def lines(self) -> list[str]:
        """One line a finding, the worst first; a last line that sums up."""
        found = [f"missing  {node}  {self.facts['unheard'][node]}" for node in self.missing]
        found += [f"sick     {node}  {why}" for node, why in self.sick.items()]
        found += [f"slow     {node}  {why}" for node, why in self.slow.items()]
        found += [f"note     {node}  {why}" for node, why in self.notes.items()]
        expected = len(self.came) + len(self.missing)
        end = f"{expected} node{'s' * (expected != 1)} in {self.seconds:.1f} s: {len(self.missing)} missing, "
        return [*found, f"{end}{len(self.sick)} sick, {len(self.slow)} slow"]
