"""The preflight on a real cluster: nodes of their own, with what goes wrong with nodes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from real_cluster import REPO, Cluster

pytestmark = pytest.mark.slow


@dataclass
class Flights:
    """Jobs that do nothing but `rumpun preflight`."""

    cluster: Cluster
    folder: Path

    def start(self, *options: str, nodes: int = 4, sbatch: tuple[str, ...] = (), wait_for: str = "true") -> str:
        python = shlex.quote(sys.executable)
        words = shlex.join(["preflight", "--folder", str(self.folder), "--json", *options])
        code = shlex.quote("from launch.cli import main; main()")
        script = (
            f"cd {shlex.quote(str(REPO))}\nexport OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1\n"
            f"until {wait_for}; do sleep 0.1; done\n{python} -c {code} {words}\necho code $?\n"
        )
        return self.cluster.sbatch(script, f"-N{nodes}", *sbatch)

    def land(self, job: str) -> tuple[int, dict[str, Any], str]:
        """(exit code, facts, the lines for a person)."""
        self.cluster.wait_for("its end", lambda: "\ncode " in self.cluster.output(job), within=120)
        text = self.cluster.output(job)
        facts, end = json.JSONDecoder().raw_decode(text[text.index("{") :])
        return int(text.rsplit("code ", 1)[1].split()[0]), facts, text[text.index("{") + end :]

    def fly(self, *options: str, nodes: int = 4) -> tuple[int, dict[str, Any], str]:
        return self.land(self.start(*options, nodes=nodes))

    def address(self, node: str) -> str:
        return self.cluster.on(node, ["hostname", "-I"]).stdout.split()[0]


@pytest.fixture
def flights(cluster: Cluster, tmp_path: Path) -> Iterator[Flights]:
    folder = tmp_path / "shared"
    folder.mkdir()
    yield Flights(cluster, folder)
    for node in cluster.nodes:
        cluster.on(node, ["sh", "-c", f"while umount {folder} 2>/dev/null; do :; done"], check=False)
        cluster.on(node, ["sh", "-c", "ip route flush type blackhole"], check=False)
    assert list(folder.iterdir()) == []


def _of(lines: str, kind: str) -> dict[str, str]:
    found = [line.split(maxsplit=2) for line in lines.splitlines() if line.startswith(f"{kind} ")]
    return {node: why for _, node, why in found}


def test_four_nodes_that_are_well(flights: Flights) -> None:
    code, facts, lines = flights.fly("--interface", "eth0")
    assert (code, _of(lines, "missing"), _of(lines, "sick")) == (0, {}, {})
    assert "4 nodes in " in lines
    assert {node: each["address"] for node, each in facts["nodes"].items()} == {
        node: flights.address(node) for node in flights.cluster.nodes
    }
    assert len(facts["pairs"]) == 4 and all(pair["gb_per_s"] > 0 for pair in facts["pairs"])


@pytest.mark.parametrize("accident", ["slurmd-kill", "unplug"])
def test_a_node_that_is_gone_is_named_and_nobody_waits(flights: Flights, accident: str) -> None:
    cluster, flag = flights.cluster, flights.cluster.scratch / f"gone-{accident}"
    job = flights.start(sbatch=("--no-kill", "--no-requeue"), wait_for=f"test -e {flag}")
    cluster.wait_for_state(job, "RUNNING")
    cluster.testbench("node", "node3", accident)
    flag.touch()
    code, facts, lines = flights.land(job)
    assert code == 1
    assert set(_of(lines, "missing")) == {"node3"} and not _of(lines, "sick")
    assert "node3" in " ".join(facts["said"])
    cluster.testbench("node", "node3", "plug" if accident == "unplug" else "slurmd-start")


def test_a_node_without_this_python(flights: Flights) -> None:
    """Its folder of programs was not staged there: known at once, and not after a minute of waiting."""
    place = str(Path(sys.prefix) / "bin")
    flights.cluster.on("node2", ["mount", "-t", "tmpfs", "tmpfs", place])
    try:
        code, facts, lines = flights.fly()
    finally:
        flights.cluster.on("node2", ["umount", place])
    assert code == 1 and set(_of(lines, "missing")) == {"node2"}
    assert "Python did not run there" in _of(lines, "missing")["node2"]
    assert "No such file or directory" in " ".join(facts["said"])


def test_a_node_with_other_code(flights: Flights, tmp_path: Path) -> None:
    stale = tmp_path / "loop.py"
    stale.write_text("# an older view\n")
    seen = str(REPO / "train" / "loop.py")
    flights.cluster.on("node2", ["mount", "--bind", str(stale), seen])
    try:
        code, facts, lines = flights.fly()
    finally:
        flights.cluster.on("node2", ["umount", seen])
    sick = _of(lines, "sick")
    assert code == 1 and set(sick) == {"node2"}
    assert "other code: " in sick["node2"] and f"{facts['code']} on node1" in sick["node2"]
    assert "differs in train/loop.py" in sick["node2"]


def test_a_folder_that_a_node_cannot_use(flights: Flights) -> None:
    flights.cluster.on("node3", ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(flights.folder)])
    flights.cluster.on("node4", ["mount", "-t", "tmpfs", "tmpfs", str(flights.folder)])
    code, _, lines = flights.fly()
    sick = _of(lines, "sick")
    assert code == 1 and set(sick) == {"node3", "node4"}
    assert "cannot be written (Read-only file system)" in sick["node3"]
    assert "it is another file system" in sick["node4"]


def _cut(flights: Flights, node: str, *others: str) -> None:
    for other in others:
        flights.cluster.on(node, ["ip", "route", "add", "blackhole", f"{flights.address(other)}/32"])


def test_a_blocked_link_is_named_with_both_ends(flights: Flights) -> None:
    _cut(flights, "node2", "node3")
    code, _, lines = flights.fly()
    sick = _of(lines, "sick")
    assert code == 1 and set(sick) == {"node2", "node3"}
    for why in sick.values():
        assert f"node3 ({flights.address('node3')}) cannot connect to node2 ({flights.address('node2')})" in why
        assert "both talk with others" in why


def test_a_node_that_its_neighbours_do_not_reach_is_the_one_named(flights: Flights) -> None:
    _cut(flights, "node3", "node2", "node4")
    code, _, lines = flights.fly()
    sick = _of(lines, "sick")
    assert code == 1 and set(sick) == {"node3"}
    assert "talks with no partner" in sick["node3"] and "node2" in sick["node3"] and "node4" in sick["node3"]


def test_a_wrong_interface(flights: Flights) -> None:
    code, _, lines = flights.fly("--interface", "ib0", nodes=2)
    assert code == 1 and set(_of(lines, "sick")) == {"node1", "node2"}
    assert "no interface ib0 here; there are eth0, lo" in lines
