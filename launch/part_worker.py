"""A process that computes parts of a data stage: one JSON line in, one line back, until its input ends.

    python -m launch.part_worker

Results go to the files that the lines name (data_prep/fanout.py), so nothing depends on what this process prints: a
line on standard output only says that a part has ended. What a part itself prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Compute the parts that standard input names."""
    from data_prep.errors import UserError
    from data_prep.fanout import run_part
    from launch.agent import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole terminal; the parent decides what ends
    done = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        told: dict[str, list[str]] = {}
        try:
            run_part(asked["function"], asked["part"], Path(asked["record"]))
        except UserError as error:  # no room for the record: the line is all that is left to say it with
            told = {"mistake": [error.value, error.rule, error.fix]}
        done.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
