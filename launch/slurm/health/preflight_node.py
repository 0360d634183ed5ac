"""A node's side of a preflight: look, tell, then do what is asked until told to leave.

`python -m launch.slurm.health.preflight_node TOKEN ASK` is started once on every node. It speaks with the controller by
its own stdin and stdout, which the scheduler carries: neither an open port nor a shared folder is needed for a node to
be heard. Every line from the controller is `{json}`, the same for all nodes; every line to it is JSON too, in pieces
(`launch/slurm/health/preflight_lines.py`).

    → {"at": "hello"}                at once, before anything can hang
    → {"at": "part", "part": …}      before each part of the look: a node that hangs is known to hang there
    → {"at": "report", "facts": …}   all of it
    ← {"do": "ping", "k": …}         → {"at": "pong", "k": …, "time": …}, answered at once, for the clock
    ← {"do": "matrix", "nodes": …}   → {"at": "matrix", "rates": …}, once more, alone
    ← {"do": "pairs", …}             → {"at": "pair", …}, see `launch/slurm/health/preflight_pairs.py`
    ← {"do": "reduce", …}            → {"at": "reduce", …}, see `launch/slurm/health/preflight_reduce.py`
    ← {"do": "leave"}                or the end of stdin: the controller is gone, and so is this

What it costs, on a warm node: 0.1 s to be here, 0.3 s for files and versions, 0.4 s for the CPU's matrix product with
numpy. torch is imported (2 s and more) only where GPUs were asked for; it is then the import that the ranks need too.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from launch.slurm.health import preflight_facts as look
from launch.slurm.health.preflight_gpu import gpu_facts, matrix_gpu, visible_gpus, xids
from launch.slurm.health.preflight_lines import cut
from launch.slurm.health.preflight_pairs import Listener, own_part


class Voice:
    """Lines to the controller, whole, from any thread."""

    def __init__(self, token: str) -> None:
        self._token, self._lock = token, threading.Lock()

    def say(self, at: str, **facts: Any) -> None:
        """Write one line. A controller that is gone ends this process: there is nobody left to work for."""
        node = look.node_name()
        data = cut(self._token, node, {"at": at, "node": node, **facts})
        with self._lock:
            try:
                while data:
                    data = data[os.write(1, data) :]
            except OSError:
                os._exit(1)


def _listen(voice: Voice, orders: queue.Queue[dict[str, Any]]) -> None:
    """Answer pings at once; everything else waits for its turn."""
    for line in sys.stdin:
        try:
            order = json.loads(line)
        except ValueError:
            continue
        if order.get("do") == "ping":
            voice.say("pong", k=order["k"], time=time.time())
        else:
            orders.put(order)
    # No more orders can come: the controller has left, or died. Whatever hangs here must not outlive it.
    os._exit(0)


class Look:
    """The parts of a look at this node, each timed, each allowed to fail by itself.

    Attributes:
        facts: what was found, by part.
        errors: part → what went wrong in it.
        seconds: part → how long it took.
    """

    def __init__(self, voice: Voice, ask: dict[str, Any], token: str) -> None:
        self._voice, self._ask, self._token = voice, ask, token
        self.facts: dict[str, Any] = {}
        self.errors: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.listener: Listener | None = None

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Do one part: its result becomes a fact, its exception an error."""
        self._voice.say("part", part=name)
        began = time.monotonic()
        try:
            self.facts[name] = work()
        except Exception as error:  # whatever it is, it belongs into the report of this node
            self.errors[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self.seconds[name] = round(time.monotonic() - began, 3)

    def all(self) -> None:
        """Every part, the ones that may hang last."""
        self.part("limits", look.limits)
        self.part("memory", look.memory_places)
        self.part("versions", look.versions)
        self.part("code", self._code)
        self.part("network", self._network)
        self.part("load", look.foreign_load)
        if self._ask["gpus"]:
            self.part("gpus", gpu_facts)  # before torch: what is on a GPU now is not ours
            self.part("xids", xids)
            self.part("visible_gpus", visible_gpus)
        if self._ask["matrix"]:
            self.part("matrix", self.matrix)
        for folder, marker in self._ask["folders"].items():
            self.part(f"folder {folder}", partial(self._folder, folder, marker))

    def matrix(self) -> list[float]:
        """The short matrix product: TFLOP/s of each GPU, or GFLOP/s of a core."""
        return matrix_gpu() if self._ask["gpus"] and visible_gpus() else look.matrix_cpu()

    def _code(self) -> dict[str, Any]:
        root = look.code_root()
        files = look.code_files(root)
        digest = look.code_digest(files)
        # the names of the files are only of interest where something differs
        expected = self._ask.get("code")
        return {
            "digest": digest,
            "root": str(root),
            "prefix": sys.prefix,
            **({"files": files} if expected and digest != expected else {}),
        }

    def _network(self) -> dict[str, Any]:
        name, address = look.address_of(self._ask.get("interface"))
        self.listener = Listener(address)
        spare = Listener(address)  # a port that was free a moment ago, for torch's rendezvous
        spare.close()
        return {"interface": name, "address": address, "port": self.listener.port, "spare": spare.port}

    def _folder(self, folder: str, marker: str | None) -> dict[str, Any]:
        return look.folder_facts(Path(folder), marker=marker, token=self._token, node=look.node_name())


def main(arguments: list[str]) -> None:
    """Look, report, and obey until told to leave. `arguments`: the token, and what is asked as JSON."""
    # a warning that the job's time ends reaches every step: what follows from it is the controller's to decide
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    token, ask = arguments[0], json.loads(arguments[1])
    voice = Voice(token)
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    voice.say("hello", step=os.environ.get("SLURM_STEP_ID"), pid=os.getpid())
    threading.Thread(target=_listen, args=(voice, orders), daemon=True).start()
    mine = Look(voice, ask, token)
    mine.all()
    voice.say("report", facts=mine.facts, errors=mine.errors, seconds=mine.seconds)
    while (order := orders.get())["do"] != "leave":
        if order["do"] == "matrix" and look.node_name() in order["nodes"]:
            mine.part("matrix", mine.matrix)
            voice.say("matrix", rates=mine.facts.get("matrix", []))
        elif order["do"] == "pairs" and mine.listener is not None:
            if (done := own_part(look.node_name(), order, mine.listener, token=token)) is not None:
                voice.say("pair", round=order["round"], **done)
        elif order["do"] == "reduce":
            from launch.slurm.health.preflight_reduce import own_reduce

            if (done := own_reduce(look.node_name(), order)) is not None:
                voice.say("reduce", round=order["round"], **done)
    sys.stdout.flush()
    os._exit(0)  # at once: CUDA's and numpy's threads have nothing to finish


if __name__ == "__main__":
    main(sys.argv[1:])
