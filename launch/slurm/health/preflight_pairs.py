"""Pairs of nodes exchange bytes over TCP: who cannot be reached, who is slow, and which end of a pair it is.

Nodes stand in a ring and each talks with the next one, so that every node is in two pairs with different partners, in
two rounds (three for an odd number) of disjoint pairs, whatever the number of nodes. That is what names one bad node:
its two pairs are both bad, while each of its partners has a good pair with somebody else. Where only one pair of a
node is bad, the link between the two is named. Of two nodes alone, both are named: one pair cannot tell.

Both ends listen where the ranks will talk (the profile's interface, any free port, as torch and NCCL choose theirs), so
a firewall between nodes, a wrong interface and a host's name that means the loopback all show here, in seconds and with
both ends, instead of as a rendezvous that times out.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

CONNECT_S = 2.0  # an answer takes under 1 ms where the way is open; one lost packet is sent again after 1 s
GREETING_S = 1.0  # the partner greets at once; a stranger may say nothing for ever
STREAM_S = 0.15  # a direction; the rate of one stream settles within 0.05 s on 10 to 100 Gb/s
PINGS = 30
_CHUNK = 1 << 18

Pair = tuple[str, str]


def ring_rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """Rounds of disjoint pairs that make the ring: one for two nodes, two for an even number, three for an odd one.

    The first of a pair listens, the second connects. Every node listens in one pair and connects in the other.
    """
    count = len(nodes)
    if count < 2:
        return []
    ring = [(nodes[i], nodes[(i + 1) % count]) for i in range(count if count > 2 else 1)]
    if count == 2:
        return [ring]
    rounds = [ring[0 : count - count % 2 : 2], ring[1::2]]
    return [*rounds, [ring[-1]]] if count % 2 else rounds


class Listener:
    """A listening socket on this node's address, at a port that the system chooses."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.create_server((address, 0), backlog=16)
        self.port: int = self._socket.getsockname()[1]

    def meet(self, greeting: bytes, *, within_s: float = CONNECT_S + 1) -> dict[str, Any]:
        """Wait for the partner that knows the greeting, and exchange: {"rate": bytes/s that came here}.

        Raises:
            OSError: nobody came in time, or the exchange broke off.
        """
        until = time.monotonic() + within_s
        while True:
            self._socket.settimeout(max(0.05, until - time.monotonic()))
            link, _ = self._socket.accept()
            with link:
                link.settimeout(GREETING_S)
                try:
                    known = _receive(link, len(greeting)) == greeting
                except OSError:
                    known = False
                if not known:  # a stranger, or a partner of a former round that came late
                    continue
                _ready(link)
                for _ in range(PINGS):
                    link.sendall(_receive(link, 8))
                _stream(link)
                return {"rate": _drain(link)}

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def connect(address: str, port: int, greeting: bytes, *, source: str) -> dict[str, Any]:
    """Exchange with a listening partner: {"rate": bytes/s that came here, "latency_s": round trip, the median}.

    Raises:
        OSError: it cannot be reached in time from `source`, or the exchange broke off.
    """
    with socket.create_connection((address, port), timeout=CONNECT_S, source_address=(source, 0)) as link:
        _ready(link)
        link.sendall(greeting)
        trips = []
        for _ in range(PINGS):
            began = time.perf_counter()
            link.sendall(b"12345678")
            _receive(link, 8)
            trips.append(time.perf_counter() - began)
        rate = _drain(link)
        _stream(link)
        return {"rate": rate, "latency_s": round(statistics.median(trips), 7)}


def _ready(link: socket.socket) -> None:
    link.settimeout(CONNECT_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _receive(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := link.recv(size - len(data))):
            raise ConnectionError("the other end closed the connection")
        data += more
    return data


def _stream(link: socket.socket) -> None:
    """Send for a while, then say that it was all. The other end's count comes back, so that nothing is under way."""
    chunk = bytes(_CHUNK)
    until = time.monotonic() + STREAM_S
    while time.monotonic() < until:
        link.sendall(b"\1" + chunk[1:])
    link.sendall(b"\0" + chunk[1:])
    _receive(link, 1)


def _drain(link: socket.socket) -> float:
    """Receive until the chunk that says so; bytes/s since the first."""
    buffer = memoryview(bytearray(_CHUNK))
    count, began, last = 0, 0.0, False
    while not last:
        got = 0
        while got < _CHUNK:
            if not (more := link.recv_into(buffer[got:])):
                raise ConnectionError("the other end closed the connection")
            began = began or time.perf_counter()
            got += more
        last = buffer[0] == 0
        count += got
    rate = count / max(time.perf_counter() - began, 1e-9)
    link.sendall(b"!")
    return round(rate)


def own_part(me: str, ask: Mapping[str, Any], listener: Listener, *, token: str) -> dict[str, Any] | None:
    """What this node does in a round: listen, connect, or nothing (None).

    Args:
        me: this node.
        ask: {"round": n, "pairs": [[listener, connector, address, port]]}.
        listener: this node's.
        token: the name of this preflight; strangers do not know it.

    Returns:
        {"pair": [listener, connector], "rate": …} or with "error": what went wrong, as this end saw it.
    """
    for first, second, address, port in ask["pairs"]:
        if me not in (first, second):
            continue
        greeting = f"{token} {ask['round']:06d} {first} {second}".encode()
        try:
            own = listener.address
            done = listener.meet(greeting) if me == first else connect(address, port, greeting, source=own)
        except TimeoutError:
            side = "nobody came" if me == first else "no answer"
            return {"pair": [first, second], "error": f"{side} in {CONNECT_S:.0f} s"}
        except OSError as error:
            return {"pair": [first, second], "error": (error.strerror or str(error)).lower()}
        return {"pair": [first, second], **done}
    return None


def bad_ends(good: Mapping[Pair, bool]) -> tuple[set[str], set[Pair]]:
    """Which nodes, and which links between good nodes, explain the pairs that are not good.

    Args:
        good: each pair that was tried, in this order of its ends → whether it was good.

    Returns:
        (nodes none of whose pairs is good while some pair is, or while there is no other; pairs that are bad though
        both ends have a good one). Where not one pair of several is good, every node is named.
    """
    nodes = {node for pair in good for node in pair}
    bad = {node for node in nodes if not any(fine for pair, fine in good.items() if node in pair)}
    return bad, {pair for pair, fine in good.items() if not fine and not bad & set(pair)}


def slow_ends(rates: Mapping[Pair, float], *, share: float) -> tuple[dict[str, float], dict[Pair, float]]:
    """Nodes, and links between good nodes, below `share` of the usual rate → their share of it.

    The usual rate is the median over nodes of each node's best pair: a bad node spoils two pairs, and of few nodes that
    is half of all pairs, but it is the best pair of itself only.
    """
    nodes = sorted({node for pair in rates for node in pair})
    if len(nodes) < 3:
        return {}, {}
    best = {node: max(rate for pair, rate in rates.items() if node in pair) for node in nodes}
    usual = statistics.median(best.values())
    slow = {node: round(rate / usual, 2) for node, rate in best.items() if rate < share * usual}
    links = {
        pair: round(rate / usual, 2)
        for pair, rate in rates.items()
        if rate < share * usual and not set(pair) & set(slow)
    }
    return slow, links
