"""`rumpun testbench …`: a SLURM cluster of several nodes on this one machine, to try job scripts on.

The cluster is made of shell scripts, `slurm/testbench/`, which need no Python. Here are only their options, checked and
explained. Each command becomes the script (exec), so signals, output and exit codes are its own: 0 done, 1 something
did not come up, 2 a mistake to mend, 130 ^C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError

SCRIPT = Path(__file__).resolve().parent.parent / "slurm" / "testbench" / "testbench"

testbench_app = typer.Typer(help="A SLURM cluster on this machine, to try jobs on.", no_args_is_help=True)

At = Annotated[
    Path | None,
    typer.Option(
        "--at", metavar="DIR", help="folder of the cluster: RUMPUN_TESTBENCH, else rumpun-testbench in TMPDIR"
    ),
]


@testbench_app.command("up")
def testbench_up(
    at: At = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, max=200, help="how many nodes (4)")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, max=64, help="fake GPUs per node (2)")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, help="CPUs per node, as SLURM sees them (8)")] = None,
    memory_mb: Annotated[
        int | None, typer.Option("--memory-mb", min=1, help="memory per node, as SLURM sees it (16000)")
    ] = None,
    grace_s: Annotated[
        int | None, typer.Option("--grace-s", min=0, help="seconds that a preempted job of partition low has (20)")
    ] = None,
    accounting: Annotated[
        bool | None, typer.Option("--accounting/--no-accounting", help="with sacct, some seconds slower (yes)")
    ] = None,
    slurm_conf: Annotated[
        list[str] | None,
        typer.Option("--slurm-conf", metavar="KEY=VALUE", help="a line of slurm.conf; may be repeated"),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="install SLURM's packages where missing (apt)")] = False,
) -> None:
    """Start it, and wait until every node is idle. Options left out stay as they were in this folder."""
    options: dict[str, object] = {"nodes": nodes, "gpus": gpus, "cpus": cpus, "memory-mb": memory_mb}
    options |= {"grace-s": grace_s, "accounting": None if accounting is None else ("no", "yes")[accounting]}
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    words += [word for line in slurm_conf or [] for word in ("--slurm-conf", line)]
    _become("up", at, [*words, *(["--install"] if install else [])])


@testbench_app.command("down")
def testbench_down(at: At = None) -> None:
    """End all that it started; the queue, the accounting and the logs are kept."""
    _become("down", at)


@testbench_app.command("purge")
def testbench_purge(at: At = None) -> None:
    """End it and remove its folder."""
    _become("purge", at)


@testbench_app.command("status")
def testbench_status(at: At = None) -> None:
    """What runs, the nodes, the queue. Exit code 1 unless all of it is up."""
    _become("status", at)


@testbench_app.command("env")
def testbench_env(at: At = None) -> None:
    """Print lines for `eval`: its sbatch, srun, squeue … come first on PATH."""
    _become("env", at)


@testbench_app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def testbench_exec(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND…", help="a program and its arguments")],
    on: Annotated[str | None, typer.Option("--on", metavar="NODE", help="run it on this node")] = None,
    at: At = None,
) -> None:
    """Run a command on the login host, or on a node."""
    _become("exec", at, [*(["--on", on] if on else []), "--", *command])


@testbench_app.command("node")
def testbench_node(
    node: Annotated[str, typer.Argument(metavar="NODE", help="node1, node2 …")],
    action: Annotated[
        str, typer.Argument(metavar="ACTION", help="crash, start, slurmd-kill, slurmd-start, unplug or plug")
    ],
    at: At = None,
) -> None:
    """Let something befall a node: power loss, SLURM's daemon dead, the cable out; or mend it."""
    _become("node", at, [node, action])


@testbench_app.command("controller")
def testbench_controller(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="stop, start or restart")], at: At = None
) -> None:
    """Stop, start or restart SLURM's controller; jobs go on."""
    _become("controller", at, [action])


@testbench_app.command("logs")
def testbench_logs(
    lines: Annotated[int, typer.Argument(metavar="LINES", min=1, help="how many of each log")] = 20, at: At = None
) -> None:
    """Print the end of every log."""
    _become("logs", at, [str(lines)])


@testbench_app.command("install")
def testbench_install() -> None:
    """Only install SLURM's packages, where they are missing (apt; root)."""
    _become("install", None)


def _become(command: str, at: Path | None, words: list[str] | None = None) -> None:
    if not os.access(SCRIPT, os.X_OK):
        raise UserError(
            str(SCRIPT), "is not there: the testbench is a part of the checkout", "git clone, then pip install -e ."
        )
    sys.stdout.flush()
    os.execv(SCRIPT, [str(SCRIPT), command, *(["--at", str(at)] if at else []), *(words or [])])
