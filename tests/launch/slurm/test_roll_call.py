"""The roll call with real processes: all come, one is missing, one too many, another number, a stranger."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.slurm.inside.roll_call import ADDRESS, RollCall, free_port

REPO = Path(__file__).resolve().parents[3]
RANK = (
    "import json, sys\nfrom launch.slurm.inside.roll_call import report\n"
    "rank, ranks, host, within = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])\n"
    "print(json.dumps(report(rank=rank, ranks=ranks, host=host, step='0', within_s=within)))"
)


def come(call: RollCall, rank: int, ranks: int, host: str, *, within_s: float = 20) -> subprocess.Popen[str]:
    env = os.environ | call.environment | {"PYTHONPATH": str(REPO)}
    words = [sys.executable, "-c", RANK, str(rank), str(ranks), host, str(within_s)]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(happened: object, within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_come_and_meet_where_rank_0_has_a_port() -> None:
    with RollCall(["a", "a", "b"], within_s=30, own="localhost") as call:
        ranks = [come(call, rank, 3, host) for rank, host in enumerate("aab")]
        told = [json.loads(rank.communicate(timeout=30)[0]) for rank in ranks]
        assert told[0] == told[1] == told[2]
        assert told[0]["MASTER_ADDR"] == "a" and 0 < int(told[0]["MASTER_PORT"]) < 65536
        until(lambda: call.complete)
        assert [(c.rank, c.host) for c in call.came] == [(0, "a"), (1, "a"), (2, "b")]
        assert call.trouble() is None


def test_who_is_missing_is_named_with_the_node_and_the_others_are_let_go() -> None:
    with RollCall(["a", "a", "b", "b", "c"], within_s=1.5, own="localhost") as call:
        ranks = [come(call, 0, 5, "a"), come(call, 1, 5, "a"), come(call, 4, 5, "c")]
        until(lambda: len(call.came) == 3)
        until(lambda: call.trouble() is not None)
        line, hosts = call.trouble() or ("", [])
        assert "ranks 2-3 on b did not report within" in line and hosts == ["b"]
        assert "expected 5 ranks, 3 came (from a, c)" in line
        for rank in ranks:
            _, said = rank.communicate(timeout=30)
            assert rank.returncode == 1 and "was told not to start: ranks 2-3 on b" in said


def test_a_step_with_another_number_of_tasks_is_told_at_once() -> None:
    with RollCall(["a", "b"], within_s=60, own="localhost") as call:
        rank = come(call, 0, 3, "a")
        _, said = rank.communicate(timeout=30)
        assert rank.returncode == 1 and "rank 0 of 3, but this start has 2 ranks" in said


def test_a_rank_that_comes_twice_is_told_at_once() -> None:
    with RollCall(["a", "b"], within_s=60, own="localhost") as call:
        ranks = [come(call, 0, 2, "a")]
        until(lambda: len(call.came) == 1)
        ranks.append(come(call, 0, 2, "b"))
        for rank in ranks:
            _, said = rank.communicate(timeout=30)
            assert rank.returncode == 1 and "rank 0 came twice: from a and from b" in said


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.0\r\n\r\n", b'{"token": "guess", "rank": 0}\n', b"x" * 10000])
def test_a_stranger_is_no_rank(said: bytes) -> None:
    with RollCall(["a"], within_s=60, own="localhost") as call:
        _, _, port = call.environment[ADDRESS].rpartition(":")
        with socket.create_connection(("localhost", int(port))) as stream:
            stream.sendall(said)
        rank = come(call, 0, 1, "a")
        assert json.loads(rank.communicate(timeout=30)[0])["MASTER_ADDR"] == "a"
        assert call.trouble() is None and len(call.came) == 1


def test_a_controller_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    call = RollCall(["a"], within_s=60, own="localhost")
    call.environment[ADDRESS] = f"localhost:{free_port()}"  # nobody listens there
    rank = come(call, 0, 1, "a", within_s=1.0)
    _, said = rank.communicate(timeout=30)
    assert rank.returncode == 1 and "rank 0 on a cannot reach the job's first node at localhost" in said
