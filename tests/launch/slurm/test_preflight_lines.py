"""What a node says arrives whole, in pieces that fit the scheduler's messages."""

from __future__ import annotations

import random

from launch.slurm.health.preflight_lines import Joined, cut

TOKEN = "4f1c0a9b"


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n") if line]


def test_no_line_is_longer_than_a_message() -> None:
    report = {"at": "report", "facts": {f"train/some/file_{n}.py": "0123456789ab" for n in range(400)}, "é": "\n€"}
    written = _lines(cut(TOKEN, "n" * 100, report))
    assert len(written) > 15 and max(map(len, written)) < 1024
    joined = Joined(TOKEN)
    found = [line for line in map(joined.take, written) if line is not None]
    assert found == [report]


def test_nodes_speak_in_turns_and_libraries_between_them() -> None:
    reports = {f"node{n}": [{"node": f"node{n}", "k": k, "x": "y" * 3000 * k} for k in range(3)] for n in range(4)}
    waiting = {
        node: [piece for line in lines for piece in _lines(cut(TOKEN, node, line))] for node, lines in reports.items()
    }
    draw, joined = random.Random(5), Joined(TOKEN)
    heard: dict[str, list[object]] = {node: [] for node in reports}
    while any(waiting.values()):
        node = draw.choice([node for node in waiting if waiting[node]])
        assert joined.take(b"a warning of a library\n") is None
        if (line := joined.take(b"no newline before: " + waiting[node].pop(0))) is not None:
            heard[node].append(line)
    assert heard == reports


def test_a_line_of_which_a_piece_is_missing_says_nothing_and_the_next_one_counts() -> None:
    first, second = {"k": 1, "x": "y" * 3000}, {"k": 2, "x": "z" * 3000}
    for lost in range(4):
        joined = Joined(TOKEN)
        pieces = _lines(cut(TOKEN, "node1", first))
        assert len(pieces) == 4
        del pieces[lost]
        assert [joined.take(piece) for piece in pieces] == [None] * 3
        assert [line for line in map(joined.take, _lines(cut(TOKEN, "node1", second))) if line] == [second]


def test_rubbish_is_no_line() -> None:
    joined = Joined(TOKEN)
    for rubbish in (
        "",
        "node1",
        "node1 1/1",
        "node1 1/1 {",
        "node1 1/1 7",
        "node1 x/y {}",
        "node1 2/2 {}",
        "node1 1/1 {}x",
    ):
        assert joined.take(f"{TOKEN} {rubbish}\n".encode()) is None
    assert joined.take(f"{TOKEN} node1 1/1 {{}}\n".encode()) == {}
    assert joined.take(b"\xff\xfe\n") is None
