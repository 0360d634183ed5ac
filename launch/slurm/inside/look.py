"""The preflight of a link: once, before its first ranks start; what it finds is told, recorded and remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from launch.failure import NodeFailure

if TYPE_CHECKING:
    from launch.display import TerminalProgress
    from launch.slurm.inside.job import Link


def node_of(host: str, nodes: Sequence[str]) -> str:
    """The scheduler's name of a host: it may say node3 where the host says node3.cluster.example, or the reverse."""
    short = host.split(".")[0]
    return next((node for node in nodes if node == host or node.split(".")[0] == short), host)


def remember_all(link: Link, found: Mapping[str, tuple[str, str]]) -> None:
    """Enter what happened on nodes into the memory that all runs beside this one share. `found`: node → (kind, why)."""
    from launch.slurm.health.memory import folder_of, remember

    for node, (kind, why) in found.items():
        remember(folder_of(link.run.parent), node, kind, why, job=link.place.job_id, run=link.run.name)


class Look:
    """Looks at all nodes the first time that it is called.

    Raises `NodeFailure` where a node is missing or sick: the job must go on without it.
    """

    def __init__(self, link: Link, progress: TerminalProgress) -> None:
        self._link, self._progress, self._done = link, progress, False

    def __call__(self) -> None:
        """See the class."""
        if self._done:
            return
        from launch.slurm.health.preflight import PreflightNeeds, run_preflight
        from launch.slurm.inside.wrapping import wrapping

        self._done = True
        link, profile = self._link, self._link.profile
        prefix, options, python = wrapping(profile)
        found = run_preflight(
            nodes=link.place.nodes, tasks_per_node=link.place.tasks_per_node, folders=[link.run],
            needs=PreflightNeeds(
                gpus=link.place.tasks_per_node if profile.gpus_per_node else 0, interface=profile.interface
            ),
            within_s=link.recipe.slurm.start_within_s, program=(*prefix, python), options=options,
        )  # fmt: skip
        nodes = {node: facts for node, facts in found.facts.get("nodes", {}).items() if facts}
        link.log.write(
            "preflight", seconds=round(found.seconds, 2), sick=found.sick, slow=found.slow,
            missing=list(found.missing),
            facts={"parts": found.facts.get("parts", {}), "nodes": nodes, "pairs": found.facts.get("pairs", [])},
        )  # fmt: skip
        for line in found.lines():
            self._progress.note(f"[preflight] {line}")
        remember_all(link, found.blamed())
        if not found.good:
            unheard = found.facts.get("unheard", {})
            bad = {**{node: unheard.get(node, "was not heard") for node in found.missing}, **found.sick}
            line = "; ".join(f"{node}: {why}" for node, why in bad.items())
            raise NodeFailure(f"preflight: {line}", line=line, cause="preflight", hosts=list(found.blamed()))
