"""The memory of nodes: who is kept out, for how long, and never too many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.slurm.health import memory as nodes

HOUR, DAY = 3600.0, 86400.0
KNOWN = [f"n{i}" for i in range(1, 41)]
NOON = 1_800_000_000.0


class Clock:
    """The time that the module under test is told."""

    def __init__(self) -> None:
        self.now = NOON

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(nodes.time, "time", found.time)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return nodes.folder_of(tmp_path / "runs")


def test_nothing_is_remembered_at_first(folder: Path) -> None:
    assert nodes.excluded(folder, known=KNOWN) == {}
    assert nodes.table(folder) == []
    with pytest.raises(UserError, match="remembered are: none"):
        nodes.forget(folder, "n1")


@pytest.mark.parametrize("kind", ["failed", "sick", "roll_call_missing"])
def test_a_node_failure_counts_at_once_and_doubles(folder: Path, clock: Clock, kind: str) -> None:
    """12, 24, 48, 96 hours, then 7 days: from the rule, not from the program."""
    for job, hours in enumerate((12, 24, 48, 96, 168, 168)):
        event = nodes.remember(folder, "n1", kind, "the fan\nis broken", job=str(job), run="r")
        assert event.until == pytest.approx(clock.now + hours * HOUR)
        assert list(nodes.excluded(folder, known=KNOWN, now=clock.now + hours * HOUR - 1)) == ["n1"]
        assert nodes.excluded(folder, known=KNOWN, now=clock.now + hours * HOUR + 1) == {}
        clock.now += hours * HOUR + 60
        if job == 3:
            assert "the fan is broken" in nodes.table(folder, now=clock.now)[0]["last"].what


def test_what_is_long_ago_counts_no_more(folder: Path, clock: Clock) -> None:
    nodes.remember(folder, "n1", "failed", "x", job="1")
    clock.now += 31 * DAY
    assert nodes.remember(folder, "n1", "failed", "x", job="2").until == pytest.approx(clock.now + 12 * HOUR)


def test_one_incident_is_counted_once(folder: Path, clock: Clock) -> None:
    first = nodes.remember(folder, "n1", "roll_call_missing", "x", job="1")
    clock.now += 30
    assert nodes.remember(folder, "n1", "failed", "y", job="1").until == first.until
    clock.now += 30
    assert nodes.remember(folder, "n1", "failed", "z", job="2").until == pytest.approx(clock.now + 24 * HOUR)


@pytest.mark.parametrize("kind", ["rank_killed", "hung", "slow"])
def test_a_crash_counts_when_it_comes_back_to_the_same_node(folder: Path, clock: Clock, kind: str) -> None:
    assert nodes.remember(folder, "n1", kind, "x", job="1", run="r").until == 0
    clock.now += 30
    assert nodes.remember(folder, "n1", kind, "x", job="1", run="r").until == 0, "a moment later it is the same"
    clock.now += HOUR
    assert nodes.remember(folder, "n1", kind, "x", job="1", run="r").until == pytest.approx(clock.now + 12 * HOUR)


def test_a_crash_that_other_nodes_have_too_is_the_programs(folder: Path, clock: Clock) -> None:
    nodes.remember(folder, "n1", "rank_killed", "x", job="1", run="r")
    nodes.remember(folder, "n2", "rank_killed", "x", job="2", run="r")
    nodes.remember(folder, "n1", "rank_killed", "x", job="3", run="r")
    assert nodes.excluded(folder, known=KNOWN) == {}
    nodes.remember(folder, "n1", "rank_killed", "x", job="4", run="another")
    assert nodes.excluded(folder, known=KNOWN) == {}, "once in a run that no other node crashed is once"
    nodes.remember(folder, "n1", "rank_killed", "x", job="5", run="another")
    assert set(nodes.excluded(folder, known=KNOWN)) == {"n1"}


def test_a_tenth_of_the_partition_at_most_the_worst_first(folder: Path, clock: Clock) -> None:
    for node in ("n1", "n2", "n3", "n4", "n5"):
        nodes.remember(folder, node, "failed", "x", job="1")
    clock.now += 2 * HOUR
    nodes.remember(folder, "n5", "failed", "x", job="2")
    found = nodes.exclusions(folder, known=KNOWN, now=clock.now)
    assert len(found.excluded) == 4 and next(iter(found.excluded)) == "n5"
    assert set(found.spared) == {"n1", "n2", "n3", "n4", "n5"} - set(found.excluded)
    for few in (KNOWN[:5], KNOWN[:19]):
        assert set(nodes.excluded(folder, known=few, now=clock.now)) == {"n5"}
    assert nodes.excluded(folder, known=["other"], now=clock.now) == {}


def test_forgotten(folder: Path, clock: Clock) -> None:
    nodes.remember(folder, "n1", "failed", "x", job="1")
    clock.now += HOUR
    assert nodes.forget(folder, "n1") == 1
    assert nodes.excluded(folder, known=KNOWN, now=clock.now) == {}
    clock.now += HOUR
    event = nodes.remember(folder, "n1", "failed", "x", job="2")
    assert event.until == pytest.approx(clock.now + 12 * HOUR), "the first counts no more"
    with pytest.raises(UserError, match="remembered are: n1"):
        nodes.forget(folder, "n7")


def test_damaged_lines_are_passed_over_and_told(folder: Path, clock: Clock) -> None:
    nodes.remember(folder, "n1", "failed", "x", job="1")
    path = folder / "n1.jsonl"
    with path.open("ab") as stream:
        stream.write(b'{"time": 1, "kind": "fai')  # cut off: the writer died
    nodes.remember(folder, "n1", "failed", "y", job="2")
    with path.open("ab") as stream:
        stream.write(b'[1]\n\xff\xfe\n{"time": "soon", "kind": "failed", "what": "x"}\n\n')
    found = nodes.exclusions(folder, known=KNOWN)
    assert set(found.excluded) == {"n1"} and found.damaged == [f"n1.jsonl, line {line}" for line in (2, 4, 5, 6)]
    assert nodes.table(folder)[0]["counts"] == {"failed": 2}
    assert [json.loads(path.read_bytes().splitlines()[line])["what"] for line in (0, 2)] == ["x", "y"]


@pytest.mark.parametrize("node", ["../n1", "", "a/b", ".n1", "n 1"])
def test_a_name_that_is_none_writes_nowhere(folder: Path, node: str) -> None:
    with pytest.raises(UserError, match="is no name of a node"):
        nodes.remember(folder, node, "failed", "x")
    assert not folder.exists()


def test_a_kind_that_is_none(folder: Path) -> None:
    with pytest.raises(UserError, match="use one of failed, hung"):
        nodes.remember(folder, "n1", "tired", "x")


def test_several_jobs_write_at_once(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from launch.slurm.health.memory import remember\n"
        "for i in range(20): remember(Path(sys.argv[1]), 'n1', 'failed', 'w' * 300, job=f'{sys.argv[2]}-{i}')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(n)]) for n in range(4)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    events, damaged = nodes.events_of(folder)
    assert damaged == [] and len({event.job for event in events["n1"]}) == 80


def test_command(tmp_path: Path) -> None:
    folder = nodes.folder_of(tmp_path / "runs")

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from launch.cli import main; sys.argv[0] = 'rumpun'; sys.exit(main())"
        command = [sys.executable, "-c", code, "cluster", "nodes", "--runs", str(tmp_path / "runs"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert "nothing is remembered" in ask().stdout
    nodes.remember(folder, "n1", "failed", "power supply", job="12", run="small")
    nodes.remember(folder, "n2", "rank_killed", "signal 9", job="12", run="small")
    (folder / "n2.jsonl").open("a").write("torn\n")
    shown = ask()
    lines = shown.stdout.splitlines()
    assert lines[1].split()[0] == "n1" and "1 × failed" in lines[1] and lines[1].endswith("power supply")
    assert lines[2].split()[:2] == ["n2", "-"] and "12" in lines[2] and "small" in lines[2]
    assert "damaged line was passed over: n2.jsonl, line 2" in shown.stderr
    assert "n1: 1 events count no more" in ask("--forget", "n1").stdout
    assert nodes.excluded(folder, known=["n1", "n2"]) == {}
    wrong = ask("--forget", "n9")
    assert wrong.returncode == 2 and "remembered are: n2" in wrong.stderr
