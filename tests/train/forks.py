"""Ranks of test scripts that begin in a fraction of a second: forked from a process that has imported everything.

A script is what `python -m torch.distributed.run … SCRIPT ARGUMENTS` would start, as often as there are ranks, with the
same environment; but the imports, which take each rank and the launcher 5 s, are made once for all runs of a session.

    with Forks() as forks:
        forks.run(script, folder, ranks=3)
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
SOONER_S = 5.0
"""Seconds that the others have to end once a rank has failed."""


class Forks:
    """Keeps the process that forks ranks; a context manager."""

    def __enter__(self) -> Forks:
        from survival.ranks import ALONE

        more = {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]), "PYTHONWARNINGS": "ignore"}
        more |= {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            env=os.environ | ALONE | more, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the end of its requests: it goes
        self._process.wait(30)

    def run(self, script: Path, *arguments: object, ranks: int, log: Path, within_s: float = 560.0) -> None:
        """Run a script in so many processes and wait for them; what they print goes to the file `log`.

        Raises `AssertionError` with the end of the log where one of them fails, or all take longer than `within_s`.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        words = [str(script), *map(str, arguments)]
        print(
            json.dumps({"words": words, "ranks": ranks, "log": str(log), "within_s": within_s}),
            file=self._process.stdin, flush=True,
        )  # fmt: skip
        answer = self._process.stdout.readline()
        assert answer, f"the process that forks has ended: {self._process.wait()}"
        codes = json.loads(answer)
        assert codes == [0] * ranks, f"exit codes {codes}\n{log.read_text(errors='replace')[-5000:]}"


def _child(request: dict[str, Any], rank: int, port: int) -> NoReturn:
    """A forked rank until its end."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["ranks"], "LOCAL_WORLD_SIZE": request["ranks"]}
    # the store is the meeting point's: every rank is its client, as under a launcher
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in place.items()})
    code = 1
    try:
        sys.argv = request["words"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _meeting_point(listening: socket.socket) -> NoReturn:
    """A process of its own for the store through which the ranks meet, until it is killed."""
    from torch.distributed import TCPStore

    port = listening.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    while True:
        time.sleep(store.timeout.total_seconds())


def _fork(job: Any, *arguments: Any) -> int:
    from survival.ranks import _die_with_parent

    pid = os.fork()
    if pid == 0:
        try:
            _die_with_parent()
            job(*arguments)
        finally:
            os._exit(1)
    return pid


def _serve(request: dict[str, Any]) -> list[int]:
    """Run a request; the exit code of each rank."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        helper = _fork(_meeting_point, listening)
    pids = [_fork(_child, request, rank, port) for rank in range(request["ranks"])]
    codes: dict[int, int] = {}
    until = time.monotonic() + request["within_s"]
    while len(codes) < len(pids):
        for rank, pid in enumerate(pids):
            if rank not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    if codes[rank]:
                        until = min(until, time.monotonic() + SOONER_S)
        if time.monotonic() > until:
            for rank, pid in enumerate(pids):
                if rank not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.kill(helper, signal.SIGKILL)
    os.waitpid(helper, 0)
    return [codes[rank] for rank in range(len(pids))]


def _main() -> None:
    from survival.ranks import _die_with_parent, import_everything

    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    import_everything()
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _main()
