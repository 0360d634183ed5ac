"""One call of a SLURM command: a list of arguments, a time-out, a clean environment, patience where it is busy."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_prep.errors import UserError
from launch.slurm.scheduler import refusals

TIMEOUT_S = 60.0
PAUSES_S = (1.0, 4.0, 10.0)
# What stops every command of this machine, as (pattern, rule, fix).
_TRY = "to try it on one machine: rumpun testbench up"
_BROKEN = (
    (
        r"could not establish a configuration source|failed to fetch config",
        "is installed here, but this machine belongs to no cluster (no slurm.conf)",
        f"run this on a login node, or set SLURM_CONF; {_TRY}",
    ),
    (
        r"unable to process configuration file|cannot stat file",
        "cannot read its configuration",
        "run it by hand to see the line; SLURM_CONF must name a slurm.conf of this release",
    ),
    (
        r"munge encode failed|protocol authentication error|invalid authentication credential|credential expired",
        "is not believed by the scheduler: munge, which proves who asks, does not work here",
        f"run this on a login node; else munged must run, with the cluster's key and its clock; {_TRY}",
    ),
)
PATIENCE_S = 60.0  # after so long no further try begins
# What SLURM sets inside a job or reads as defaults for options. Where the cluster is found stays.
_INHERITED = tuple(f"{name}_" for name in ("SLURM", "SLURMD", "SBATCH", "SALLOC", "SRUN", "SQUEUE", "SACCT", "SINFO"))
_KEPT = frozenset(("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"))


def clean_environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what a surrounding job or allocation left in it: a job submitted from inside another one
    would otherwise take that one's memory, nodes or tasks for its own wishes."""
    source = os.environ if source is None else source
    return {key: value for key, value in source.items() if key in _KEPT or not key.startswith(_INHERITED)}


@dataclass(frozen=True)
class Answer:
    """What a command printed. code: its exit status, 124 where it took too long."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """What it printed of what went wrong."""
        return self.err.strip() or self.out.strip()


def user_name() -> str:
    """Who this process is to the scheduler: never what USER says, which sudo and containers leave as it was."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


class Calls:
    """Starts SLURM's commands, and counts them in `calls`.

    Args:
        timeout_s: of each command. pauses_s: waits between tries while the controller does not answer.
        clock, sleep: for tests.
    """

    def __init__(
        self,
        *,
        timeout_s: float = TIMEOUT_S,
        pauses_s: Sequence[float] = PAUSES_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.calls = 0
        self._timeout_s, self._pauses_s, self._clock, self._sleep = timeout_s, tuple(pauses_s), clock, sleep

    def _run(self, command: list[str], *, timeout_s: float | None = None, times: bool = False) -> Answer:
        """Run a command that may be repeated; raises `UserError` where the controller stays silent."""
        until = self._clock() + PATIENCE_S
        for pause in (*self._pauses_s, None):
            answer = self._once(command, timeout_s or self._timeout_s, times=times)
            if answer.code == 0 or not refusals.TRANSIENT.search(answer.text):
                return answer
            if pause is None or self._clock() > until:
                break
            self._sleep(pause)
        raise silent(answer)

    def _once(self, command: list[str], timeout_s: float, *, times: bool = False) -> Answer:
        environment = clean_environment()
        if times:
            environment["SLURM_TIME_FORMAT"] = "%s"  # epoch seconds: no zone, no daylight saving
        self.calls += 1
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                env=environment,
                check=False,
            )
        except FileNotFoundError as error:
            raise UserError(
                f"command {command[0]}", "is not here", "run this on a login node, or: module load slurm"
            ) from error
        except OSError as error:  # words too long, no permission, no memory for a process
            raise UserError(
                f"command {command[0]}", f"cannot be started ({error.strerror})", "run it by hand to see why"
            ) from error
        except subprocess.TimeoutExpired:
            return Answer(124, "", f"Socket timed out: {command[0]} did not answer within {timeout_s:.0f} s")
        for pattern, rule, fix in _BROKEN if done.returncode != 0 else ():
            if re.search(pattern, done.stderr, re.IGNORECASE):
                raise UserError(f"command {command[0]}", rule, fix)
        return Answer(done.returncode, done.stdout, done.stderr)


def silent(answer: Answer) -> UserError:
    """The controller did not answer, for as long as it was asked."""
    return UserError(
        "the scheduler", f"does not answer ({refusals.words_of(answer.text)})", "try again later; `scontrol ping` tells"
    )
