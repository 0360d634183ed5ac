"""Pairs of nodes: the ring, what it names, and the exchange itself over real sockets."""

from __future__ import annotations

import itertools
import socket
import threading
from typing import Any

import pytest

from launch.slurm.health.preflight_pairs import Listener, bad_ends, own_part, ring_rounds, slow_ends
from launch.slurm.health.preflight_talk import disjoint


@pytest.mark.parametrize("count", range(2, 12))
def test_every_node_is_in_two_pairs_of_disjoint_rounds(count: int) -> None:
    nodes = [f"n{i}" for i in range(count)]
    rounds = ring_rounds(nodes)
    assert len(rounds) == (1 if count == 2 else 2 + count % 2)
    for row in rounds:
        together = [node for pair in row for node in pair]
        assert len(together) == len(set(together))
    pairs = [pair for row in rounds for pair in row]
    partners: dict[str, set[str]] = {node: set() for node in nodes}
    for first, second in pairs:
        partners[first].add(second)
        partners[second].add(first)
    assert {len(found) for found in partners.values()} == {min(2, count - 1)}
    if count > 2:
        assert sorted(first for first, _ in pairs) == sorted(second for _, second in pairs) == sorted(nodes)


def test_no_ring_of_one() -> None:
    assert ring_rounds(["n1"]) == ring_rounds([]) == []


@pytest.mark.parametrize("count", range(3, 9))
def test_one_bad_node_or_link_is_named(count: int) -> None:
    nodes = [f"n{i}" for i in range(count)]
    pairs = [pair for row in ring_rounds(nodes) for pair in row]
    for bad in nodes:
        assert bad_ends({pair: bad not in pair for pair in pairs}) == ({bad}, set())
        rates = {pair: 0.3 if bad in pair else 1.0 for pair in pairs}
        slow, links = slow_ends(rates, share=0.7)
        assert (set(slow), links) == ({bad}, {}) and slow[bad] == 0.3
    for link in pairs:
        assert bad_ends({pair: pair != link for pair in pairs}) == (set(), {link})
        assert slow_ends({pair: 0.3 if pair == link else 1.0 for pair in pairs}, share=0.7) == ({}, {link: 0.3})


def test_two_bad_nodes_are_named_where_others_tell() -> None:
    nodes = [f"n{i}" for i in range(7)]
    pairs = [pair for row in ring_rounds(nodes) for pair in row]
    for bad in itertools.combinations(nodes, 2):
        named, _ = bad_ends({pair: not set(bad) & set(pair) for pair in pairs})
        assert set(bad) <= named
        # a good node between two bad ones has no witness
        between = {node for node in nodes if all(set(pair) & set(bad) for pair in pairs if node in pair)}
        assert named == set(bad) | between


def test_of_two_nodes_both_are_named_and_neither_is_slow() -> None:
    assert bad_ends({("a", "b"): False}) == ({"a", "b"}, set())
    assert slow_ends({("a", "b"): 1.0}, share=0.7) == ({}, {})


def test_disjoint_rounds_hold_every_pair_once() -> None:
    pairs = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]
    rounds = disjoint(pairs)
    assert sorted(pair for row in rounds for pair in row) == sorted(pairs) and len(rounds) == 2


def _exchange(order: dict[str, Any], listener: Listener, token: str = "t") -> dict[str, dict[str, Any]]:
    """Both ends of one pair, in threads of this process."""
    found: dict[str, Any] = {}

    def end(me: str, mine: Listener) -> None:
        found[me] = own_part(me, order, mine, token=token)

    ends = [
        threading.Thread(target=end, args=("a", listener)),
        threading.Thread(target=end, args=("b", Listener("127.0.0.1"))),
    ]
    for thread in ends:
        thread.start()
    for thread in ends:
        thread.join()
    return found


def _order(address: str, port: int) -> dict[str, Any]:
    return {"round": 1, "pairs": [("a", "b", address, port)]}


def test_an_exchange_counts_both_directions() -> None:
    listener = Listener("127.0.0.1")
    found = _exchange(_order("127.0.0.1", listener.port), listener)
    assert found["a"]["rate"] > 1e6 and found["b"]["rate"] > 1e6 and 0 < found["b"]["latency_s"] < 1
    assert found["a"]["pair"] == ["a", "b"]
    assert own_part("c", _order("127.0.0.1", listener.port), listener, token="t") is None


def test_strangers_do_not_disturb() -> None:
    listener = Listener("127.0.0.1")
    strangers = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
    strangers[1].close()
    strangers[2].sendall(b"short")
    strangers[2].shutdown(socket.SHUT_WR)
    strangers.append(socket.create_connection(("127.0.0.1", listener.port)))  # says nothing, and stays
    found = _exchange(_order("127.0.0.1", listener.port), listener)
    assert "error" not in found["a"] and found["b"]["rate"] > 0


def test_a_port_where_nobody_listens_is_told_by_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.slurm.health.preflight_pairs.CONNECT_S", 0.3)
    closed = Listener("127.0.0.1")
    closed.close()
    monkeypatch.setattr(Listener.meet, "__kwdefaults__", {"within_s": 0.3})
    found = _exchange(_order("127.0.0.1", closed.port), Listener("127.0.0.1"))
    assert found["b"]["error"] == "connection refused"
    assert found["a"]["error"].startswith("nobody came")
