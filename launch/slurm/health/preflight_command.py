"""`rumpun preflight`: within a job over all of its nodes, elsewhere of this machine alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError

SICK = 1  # the exit code where a node is missing or sick


def preflight_command(
    folder: Annotated[
        list[Path] | None,
        typer.Option("--folder", metavar="DIR", help="a folder that all nodes must share; may be repeated"),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="NAME", help="a profile: its interface, scratch folder and GPUs")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", metavar="N", help="GPUs a node, if not the job's")] = None,
    interface: Annotated[
        str | None, typer.Option("--interface", metavar="NAME", help="the network interface that ranks will use")
    ] = None,
    within_s: Annotated[
        float, typer.Option("--within", metavar="S", help="a node that is silent for so long is missing")
    ] = 60.0,
    facts: Annotated[bool, typer.Option("--json", help="print everything that was found, as JSON")] = False,
) -> None:
    """Look at every node of this job in seconds: code, GPUs, folders, clocks, and whether pairs of nodes can talk."""
    import json
    import subprocess

    from launch.slurm.clusters.profile import load_profile
    from launch.slurm.health.preflight import PreflightNeeds, run_preflight
    from launch.slurm.health.preflight_facts import node_name

    if within_s <= 0:
        raise UserError(f"--within {within_s:g}", "must be above 0", "give seconds, e.g. --within 60")
    job = os.environ.get("SLURM_JOB_NODELIST")
    nodes = [node_name()]
    if job:
        answer = subprocess.run(["scontrol", "show", "hostnames", job], capture_output=True, text=True, check=False)
        nodes = answer.stdout.split()
        if answer.returncode or not nodes:
            raise UserError(
                f"SLURM_JOB_NODELIST = {job}", f"is not understood ({answer.stderr.strip()})", "run it within a job"
            )
    profile = load_profile(cluster)
    if gpus is None:
        gpus = profile.gpus_per_node if job and cluster else _gpus_here(inside=bool(job))
    needs = PreflightNeeds(gpus=gpus, interface=interface or profile.interface, scratch=_scratch(profile.scratch))
    result = run_preflight(
        nodes=nodes,
        folders=[path.expanduser().absolute() for path in folder or []],
        needs=needs,
        within_s=within_s,
        local=not job,
    )
    if facts:
        typer.echo(json.dumps(result.facts, indent=1))
    for line in result.lines():
        typer.echo(line)
    for line in result.facts.get("said", []):
        typer.echo(f"         {line}")
    raise typer.Exit(0 if result.good else SICK)


def _scratch(place: str | None) -> str | None:
    """The profile's node-local folder where this job's variables in it have values; what has none is not looked at."""
    found = os.path.expandvars(place) if place else None
    return None if found and "$" in found else found


def _gpus_here(*, inside: bool) -> int:
    """GPUs a node: the job's, by what it was given on this node; elsewhere those of this machine."""
    if given := os.environ.get("SLURM_GPUS_ON_NODE"):
        return int(given) if given.isdigit() else 0
    return 0 if inside else len(list(Path("/dev").glob("nvidia[0-9]*")))
