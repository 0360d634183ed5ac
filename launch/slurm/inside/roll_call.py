"""Who was expected and who came: every rank reports before it loads anything, and none goes on before all are there.

A rank of a job is started by another host's daemon: it may never come, come twice, come as one of another number, or
come from a host that cannot reach the others. Each would otherwise show as a rendezvous that waits for half an hour.
The controller listens on a port of its own; a rank connects, says who it is, and waits for the word. Rank 0 brings a
free port of its host, which becomes everybody's rendezvous: nothing about hosts or ports is agreed on before.

    rank -> controller   {"token", "rank", "ranks", "host", "pid", "step", "port"}
    controller -> rank   {"go": {"MASTER_ADDR", "MASTER_PORT"}}  or  {"no": why}
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

ADDRESS, TOKEN = "RUMPUN_ROLL_CALL", "RUMPUN_ROLL_CALL_TOKEN"
_LINE = 4096
_RETRY_S = 0.5


@dataclass(frozen=True)
class Came:
    """A rank that has reported. `step`: the number of its step in the job; `port`: free on its host, rank 0's only."""

    rank: int
    host: str
    pid: int
    step: str
    port: int


class RollCall:
    """The controller's side. A context manager; afterwards nobody listens any more.

    Args:
        hosts: where each rank is expected, by rank. within_s: for the last rank to come.
        own: the name by which the nodes reach this host.

    Attributes:
        environment: what the ranks need to find it.
    """

    def __init__(self, hosts: Sequence[str], *, within_s: float, own: str) -> None:
        self._hosts, self._within_s, self._began = list(hosts), within_s, time.monotonic()
        self._token = secrets.token_hex(16)
        self._server = socket.create_server(("", 0), backlog=min(4096, len(self._hosts) + 8))
        self.environment = {ADDRESS: f"{own}:{self._server.getsockname()[1]}", TOKEN: self._token}
        self._came: dict[int, Came] = {}
        self._waiting: list[socket.socket] = []
        self._wrong: str | None = None
        self._lock = threading.Lock()
        self.complete_after_s: float | None = None

    def __enter__(self) -> RollCall:
        threading.Thread(target=self._listen, name="roll call", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._answer({"no": "the start was given up"})
        self._server.close()

    @property
    def came(self) -> list[Came]:
        """Who has reported, by rank."""
        with self._lock:
            return [self._came[rank] for rank in sorted(self._came)]

    @property
    def complete(self) -> bool:
        """Whether all ranks have come and were told to go on."""
        return self.complete_after_s is not None

    def trouble(self) -> tuple[str, list[str]] | None:
        """What is wrong, and the nodes that it is about; None while all may still be well."""
        with self._lock:
            if self._wrong is not None:
                return self._wrong, []
            if self.complete or time.monotonic() - self._began < self._within_s:
                return None
            missing = [rank for rank in range(len(self._hosts)) if rank not in self._came]
            came = sorted({c.host for c in self._came.values()})
        hosts = sorted({self._hosts[rank] for rank in missing})
        where = "; ".join(f"{_ranks(missing, self._hosts, host)} on {host}" for host in hosts)
        line = f"{where} did not report within {self._within_s:.0f} s; expected {len(self._hosts)} ranks, "
        line += f"{len(self._came)} came" + (f" (from {', '.join(came)})" if came else "")
        self._answer({"no": line})
        return line, hosts

    def _listen(self) -> None:
        while True:
            try:
                stream, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(stream,), daemon=True).start()

    def _take(self, stream: socket.socket) -> None:
        """One rank's report."""
        stream.settimeout(10)
        try:
            told = json.loads(_read_line(stream))
            if not secrets.compare_digest(str(told.pop("token")), self._token):
                raise ValueError("token")
            rank, ranks = int(told["rank"]), int(told.pop("ranks"))
            report = Came(rank, str(told["host"])[:80], int(told["pid"]), str(told["step"]), int(told["port"]))
        except (OSError, ValueError, KeyError, TypeError):  # somebody else's, or a start that is over
            stream.close()
            return
        stream.settimeout(None)
        with self._lock:
            self._waiting.append(stream)
            if ranks != len(self._hosts) or not 0 <= rank < ranks:
                self._wrong = (
                    f"{report.host} came as rank {rank} of {ranks}, but this start has {len(self._hosts)} ranks: "
                    "the step was started with another number of tasks"
                )
            elif rank in self._came:
                self._wrong = f"rank {rank} came twice: from {self._came[rank].host} and from {report.host}"
            else:
                self._came[rank] = report
            complete, wrong = len(self._came) == len(self._hosts), self._wrong
        if wrong is not None:
            self._answer({"no": wrong})
        elif complete:
            first = self._came[0]
            self._answer({"go": {"MASTER_ADDR": first.host, "MASTER_PORT": str(first.port)}})
            self.complete_after_s = time.monotonic() - self._began

    def _answer(self, told: dict[str, Any]) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for stream in waiting:
            with suppress(OSError):
                stream.sendall(json.dumps(told).encode() + b"\n")
            stream.close()


def _ranks(missing: Sequence[int], hosts: Sequence[str], host: str) -> str:
    """`rank 3`, `ranks 4-7`: those of a host."""
    own = [rank for rank in missing if hosts[rank] == host]
    if len(own) == 1:
        return f"rank {own[0]}"
    return f"ranks {own[0]}-{own[-1]}" if own[-1] - own[0] == len(own) - 1 else f"ranks {', '.join(map(str, own))}"


def _read_line(stream: socket.socket) -> bytes:
    """Everything up to a line's end. Raises `OSError` where the other side leaves before."""
    data = b""
    while not data.endswith(b"\n"):
        more = stream.recv(_LINE)
        if not more or len(data) > _LINE:
            raise OSError("the connection ended")
        data += more
    return data


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def report(*, rank: int, ranks: int, host: str, step: str, within_s: float = 600.0) -> dict[str, str]:
    """The rank's side: report, wait for all others, and return the environment of the rendezvous.

    Ends the process, with a line on standard error, where the controller refuses or cannot be reached.
    """
    name, _, port = os.environ[ADDRESS].rpartition(":")
    mine = {"token": os.environ[TOKEN], "rank": rank, "ranks": ranks, "host": host, "pid": os.getpid(), "step": step}
    until, why = time.monotonic() + within_s, ""
    while time.monotonic() < until:
        try:
            with socket.create_connection((name, int(port)), timeout=10) as stream:
                stream.settimeout(max(1.0, until - time.monotonic()))
                stream.sendall(json.dumps({**mine, "port": free_port() if rank == 0 else 0}).encode() + b"\n")
                told = json.loads(_read_line(stream))
            if "go" in told:
                return dict(told["go"])
            _leave(f"rank {rank} on {host} was told not to start: {told['no']}")
        except OSError as error:
            why = str(error)
            time.sleep(_RETRY_S)
    _leave(f"rank {rank} on {host} cannot reach the job's first node at {name}:{port} ({why})")


def _leave(line: str) -> NoReturn:
    os.write(2, (line + "\n").encode())
    os._exit(1)
