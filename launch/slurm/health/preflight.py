"""Preflight: every node looks at itself, and pairs of nodes talk, before anyone waits for anyone. Seconds.

One step of the scheduler starts `launch.slurm.health.preflight_node` on every node; this side asks and listens by the
step's stdin and stdout, and everything it waits for has an end. A node that is not heard in time is missing; the step
is then ended at once. What is slow is measured once more while the others rest, and only then called slow.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from launch.slurm.health import preflight_facts as look
from launch.slurm.health.preflight_judge import PreflightNeeds, Verdict, judge, majority, skews, slow_nodes
from launch.slurm.health.preflight_result import THE_STEP_ENDED, PreflightResult
from launch.slurm.health.preflight_step import Step
from launch.slurm.health.preflight_talk import Talk

PINGS = 5
STRAGGLE_S = 3.0  # once a node has failed, the others have so long to be heard
CHECKS_S = {False: 60.0, True: 180.0}  # for the look itself; with GPUs torch is imported, from a cold file system

__all__ = ["PreflightNeeds", "PreflightResult", "run_preflight"]


def run_preflight(
    *,
    nodes: Sequence[str],
    tasks_per_node: int = 1,
    folders: Sequence[Path] = (),
    needs: PreflightNeeds | None = None,
    within_s: float = 60,
    program: Sequence[str] = (sys.executable,),
    options: Sequence[str] = (),
    local: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> PreflightResult:
    """Look at all nodes of this allocation.

    Args:
        nodes: the nodes' names as the scheduler writes them.
        tasks_per_node: ranks a node: each wants its share of /dev/shm.
        folders: folders that all nodes must share and write: the run, the cache.
        needs: what the run needs of a node.
        within_s: a node that says nothing for so long is missing.
        program: what starts Python on a node; within a container, its command.
        options: more options of the step, as a container plug-in wants them.
        local: this machine alone, without the scheduler.
        say: is told each step, for a person who watches.
    """
    needs = needs or PreflightNeeds()
    folders = [folder.absolute() for folder in folders]
    flight = _Flight(
        nodes, folders, needs, within_s=within_s, program=program, tasks=tasks_per_node, say=say, inside=bool(options)
    )
    try:
        command, gpus = flight.command(), flight.needs.gpus
        with Step(command, nodes=nodes, token=flight.token, local=local, gpus=gpus, options=options) as step:
            flight.fly(step)
    finally:
        look.remove_marks(folders, flight.token)
    return flight.result()


class _Flight:
    """One preflight: what was asked, what was heard, and the verdict."""

    def __init__(
        self,
        nodes: Sequence[str],
        folders: Sequence[Path],
        needs: PreflightNeeds,
        *,
        within_s: float,
        program: Sequence[str],
        tasks: int,
        say: Callable[[str], None],
        inside: bool,
    ) -> None:
        self.nodes, self.folders, self.needs, self.within_s = list(nodes), list(folders), needs, within_s
        self.program, self.tasks, self.say = list(program), tasks, say
        self.token = secrets.token_hex(8)
        self.began = time.monotonic()
        self.own_program = self.program == [sys.executable] and not inside
        files = look.code_files(look.code_root())
        self.reference: dict[str, Any] = {
            "versions": look.versions(),
            "code": look.code_digest(files),
            "files": files,
            "who": socket.gethostname().split(".")[0],
        }
        self.came: list[str] = []
        self.reports: dict[str, dict[str, Any]] = {}
        self.part_of: dict[str, str] = {}
        self.trips: dict[str, list[tuple[float, float, float]]] = {node: [] for node in nodes}
        self.asked: dict[int, float] = {}
        self.pairs: list[dict[str, Any]] = []
        self.verdict = Verdict()
        self.parts: dict[str, float] = {}
        self.said: list[str] = []
        self.unheard: dict[str, str] = {}

    def command(self) -> list[str]:
        """What runs on each node. The marks are written into the shared folders first."""
        marks: dict[str, str | None] = {}
        for folder in self.folders:
            mark = folder / f".preflight-{self.token}"
            try:
                mark.write_text(self.token)
                marks[str(folder)] = self.token
            except OSError:  # the nodes will say what is wrong with it
                marks[str(folder)] = None
        if self.needs.scratch:
            marks[self.needs.scratch] = None
        ask = {
            "gpus": self.needs.gpus,
            "interface": self.needs.interface,
            "matrix": self.needs.matrix,
            "folders": marks,
            "code": self.reference["code"] if self.own_program else None,
        }
        return [*self.program, "-m", "launch.slurm.health.preflight_node", self.token, json.dumps(ask)]

    def _timed(self, part: str, work: Callable[[], None]) -> None:
        began = time.monotonic()
        work()
        self.parts[part] = round(time.monotonic() - began, 2)

    def fly(self, step: Step) -> None:
        """All of it, in order. A node that is missing ends it: the others could only wait."""
        self._timed("start", lambda: self._roll_call(step))
        if len(self.came) < len(self.nodes):
            return
        self.say(f"{len(self.came)} of {len(self.nodes)} nodes came")
        self._timed("look", lambda: self._look(step))
        if self.needs.matrix:
            self._timed("again", lambda: self._slow_again(step))
        if self.needs.pairs and len(self.reports) > 1:
            self._talk(step)
        step.tell({"do": "leave"})

    def _hear(
        self, step: Step, *, until: float, done: Callable[[], bool], on: Callable[[dict[str, Any]], None]
    ) -> None:
        """Take lines in until `done`, the time is over, or the step has ended."""
        while not done():
            line = step.hear(until - time.monotonic())
            if line is None:
                return
            node, at = line.get("node"), line.get("at")
            if node not in self.trips:
                continue
            if at == "hello" and node not in self.came:
                self.came.append(node)
                step.number = line.get("step") or step.number
            elif at == "part":
                self.part_of[node] = line["part"]
            elif at == "report":
                self.reports[node] = line
            elif at == "pong":
                self.trips[node].append((self.asked[line["k"]], line["time"], step.heard_at))
            else:
                on(line)

    def _roll_call(self, step: Step) -> None:
        until = self.began + self.within_s
        while len(self.came) < len(self.nodes) and time.monotonic() < until and not step.over:
            if set(step.failed_nodes()) - set(self.came):  # there is nothing to wait for
                until = min(until, time.monotonic() + STRAGGLE_S)
            pause = min(until, time.monotonic() + 0.5)
            self._hear(step, until=pause, done=lambda: len(self.came) == len(self.nodes), on=lambda line: None)
        silent = [node for node in self.nodes if node not in self.came]
        if not silent:
            return
        by_itself = step.over
        step.end()
        self.said, failed = step.said(), step.failed_nodes()
        # a step that the scheduler could not start everywhere is ended everywhere: only the cause is missing
        named = [node for node in silent if node in failed]
        why = (
            f"{THE_STEP_ENDED} before it was heard"
            if by_itself
            else f"was not heard in {time.monotonic() - self.began:.0f} s"
        )
        self.unheard = {node: failed.get(node, why) for node in named or silent}

    def _look(self, step: Step) -> None:
        until = time.monotonic() + CHECKS_S[bool(self.needs.gpus)]
        for k in range(PINGS):
            self.asked[k] = time.time()
            step.tell({"do": "ping", "k": k})
            pause = time.monotonic() + 0.04
            self._hear(step, until=pause, done=lambda: False, on=lambda line: None)
        self._hear(step, until=until, done=lambda: len(self.reports) == len(self.nodes), on=lambda line: None)
        self.said = step.said() if step.ended else []
        for node in self.came:
            if node not in self.reports:
                how = (
                    "the step ended during" if step.ended else f"after {CHECKS_S[bool(self.needs.gpus)]:.0f} s still in"
                )
                self.verdict.add("sick", node, f"came, but {how} this part: {self.part_of.get(node, 'start')}")
        self._judge()

    def _judge(self) -> None:
        reference = self.reference if self.own_program else majority(self.reports)
        digests = {report["facts"].get("code", {}).get("digest") for report in self.reports.values()}
        if self.own_program and digests - {self.reference["code"]}:
            # a file that was saved in these seconds is no other code: whoever sees it as it is now is right too
            files = look.code_files(look.code_root())
            reference = {**reference, "now": look.code_digest(files)}
        judge(self.reports, self.needs, reference=reference, verdict=self.verdict, tasks=self.tasks)
        for node, (ahead, doubt) in skews(self.trips).items():
            if abs(ahead) - doubt > self.needs.skew_s:
                side = "ahead of" if ahead > 0 else "behind"
                self.verdict.add(
                    "sick", node, f"its clock is {abs(ahead):.1f} s {side} that of {self.reference['who']}"
                )
        for node in self.reports:
            for folder in self.folders:
                written = "error" not in self.reports[node]["facts"].get(f"folder {folder}", {"error": ""})
                if written and not look.sees(folder / f".preflight-{self.token}-{node}"):
                    why = f"what it wrote into {folder} is not seen by {self.reference['who']}"
                    self.verdict.add("sick", node, why)

    def _slow_again(self, step: Step) -> None:
        for _ in range(2):  # each suspect alone, twice: on a shared machine the first time may be bad luck
            for node in slow_nodes(self.reports, share=self.needs.slow_below):
                heard: list[dict[str, Any]] = []
                step.tell({"do": "matrix", "nodes": [node]})
                self._hear(step, until=time.monotonic() + 20, done=partial(bool, heard), on=heard.append)
                if heard and heard[0]["at"] == "matrix" and heard[0]["rates"]:
                    before = self.reports[node]["facts"]["matrix"]
                    best = [max(pair) for pair in zip(before, heard[0]["rates"], strict=False)]
                    self.reports[node]["facts"]["matrix"] = best
        for node, why in slow_nodes(self.reports, share=self.needs.slow_below).items():
            self.verdict.add("slow", node, why)

    def _talk(self, step: Step) -> None:
        networks = {
            node: self.reports[node]["facts"]["network"]
            for node in self.nodes
            if "network" in self.reports.get(node, {"facts": {}})["facts"]
        }
        talk = Talk(step, networks, self.needs, self._hear)
        self._timed("pairs", lambda: self.pairs.extend(talk.exchange(self.verdict)))
        backend = {"auto": "nccl" if self.needs.gpus else "none"}.get(self.needs.reduce, self.needs.reduce)
        if backend != "none":
            self._timed("reduce", lambda: self.pairs.extend(talk.reduce(backend, self.verdict)))

    def result(self) -> PreflightResult:
        """What was found, in the order of the nodes."""
        clocks = skews(self.trips)
        nodes = {}
        for node, report in self.reports.items():
            facts = report["facts"]
            nodes[node] = {
                "rates": facts.get("matrix", []),
                "clock_ahead_s": clocks.get(node, (None, None))[0],
                "address": facts.get("network", {}).get("address"),
                "seconds": report["seconds"],
            }
            if facts.get("gpus"):
                nodes[node]["gpus"] = [gpu["name"] for gpu in facts["gpus"]]
        reference = self.reference if self.own_program else majority(self.reports)
        facts = {
            "parts": self.parts,
            "nodes": nodes,
            "pairs": self.pairs,
            "code": reference["code"],
            "versions": reference["versions"],
            **({"unheard": self.unheard} if self.unheard else {}),
            **({"said": self.said} if self.said else {}),
        }
        kinds = {
            kind: {
                node: "; ".join(getattr(self.verdict, kind)[node])
                for node in self.nodes
                if node in getattr(self.verdict, kind)
            }
            for kind in ("sick", "slow", "notes")
        }
        came = tuple(node for node in self.nodes if node in self.came)
        return PreflightResult(round(time.monotonic() - self.began, 2), came, tuple(self.unheard), facts=facts, **kinds)
