"""A process that ends with its parent.

A launcher that is killed (kill -9, a lost terminal) must not leave ranks training behind its back: they would hold the
cores and race the next run. Every rank asks the kernel to end it when its parent does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """End this process when its parent ends: by the kernel on Linux, by watching the parent's id elsewhere.

    On Linux the parent is the thread that started this process: start ranks from one that stays.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), sig)

    threading.Thread(target=watch, daemon=True).start()
