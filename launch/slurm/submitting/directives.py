"""What a job asks for as lines of its script, each with what it is for and the fact of the cluster behind it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from launch.slurm.submitting.script import Directive, export, one_line, quote_but_names

if TYPE_CHECKING:
    from launch.slurm.clusters.profile import ClusterProfile
    from launch.slurm.submitting.jobs import Job

OUTPUT = "logs/slurm"
"""Folder of a run for what the scheduler itself writes of a job."""
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "API_KEY", "CREDENTIAL")


def directives(
    job: Job, *, run: Path, profile: ClusterProfile, avoid: Mapping[str, str] | None = None, start: Path | None = None
) -> list[Directive]:
    """The directives of a job.

    Args:
        run: absolute path of the run folder. avoid: why a node of `exclude` is there, beyond the profile's.
        start: where relative paths of the recipe begin; None means the current folder.

    Raises:
        UserError: the run's path holds what the scheduler cannot write a file under.
    """
    shape = job.shape
    found: list[Directive] = []

    def add(option: str, value: object, why: str, *, fact: str = "") -> None:
        source = profile.facts.get(fact)
        text = None if value is True else str(value)
        found.append(Directive(option, text, f"{why} Fact: {source}." if source else why))

    def of_profile(option: str, value: object, why: str, *, fact: str) -> None:
        if value:
            add(option, value, f"{why} From the profile {profile.name}.", fact=fact)

    stage = not shape.gpus_per_node and not job.trains and bool(profile.stage_partition)
    add("job-name", f"{job.name}-{run.name}", "The name in the queue: the job, then its run.")
    of_profile(
        "partition", shape.partition, "The partition." if not stage else "The partition for jobs without ranks.",
        fact="stage_partition" if stage else "partition",
    )  # fmt: skip
    own_account = shape.account != profile.account
    of_profile("account", shape.account, "Who pays.", fact="stage_account" if own_account else "account")
    of_profile("qos", shape.qos, "The quality of service.", fact="qos")
    own_features = not shape.gpus_per_node and not job.trains
    of_profile(
        "constraint", shape.constraint, "Features that its nodes must have.",
        fact="stage_constraint" if own_features else "constraint",
    )  # fmt: skip
    if job.trains:
        add("nodes", shape.nodes, "Nodes. Another number changes no result: training goes on exactly.")
        add("ntasks-per-node", shape.tasks_per_node, "Ranks on each node, one for each GPU where there are any.")
    else:
        add("nodes", 1, "One process on one node.")
        add("ntasks-per-node", 1, "Parts that can be computed apart go out as jobs of their own, or share its cores.")
    if shape.gpus_per_node:
        add(
            "gpus-per-node", f"{shape.gpu_type}:{shape.gpus_per_node}" if shape.gpu_type else shape.gpus_per_node,
            "GPUs on each node." if job.trains else "One GPU for the models that it runs.", fact="gpus_per_node",
        )  # fmt: skip
    if shape.cpus_per_task:
        what = "Cores of each rank." if job.trains else "Cores."
        add("cpus-per-task", shape.cpus_per_task, what, fact="cpus_per_node")
    if shape.memory_gb:
        add("mem", f"{shape.memory_gb}G", "Host memory of each node.", fact="memory_gb")
    why = "Minutes of one link; a longer training takes several." if job.trains else "Minutes; what is done is kept."
    if shape.shortened:
        why += f" The recipe asks for more than the cluster {profile.name} gives."
    add("time", shape.time_min, why, fact="max_time_min")
    if shape.exclude:
        past = "; ".join(f"{node}: {why}" for node, why in (avoid or {}).items())
        add(
            "exclude", ",".join(shape.exclude), f"Nodes to stay away from{f' ({past})' if past else ''}.",
            fact="exclude",
        )  # fmt: skip
    found += _survival(job, profile)
    found += _surroundings(job, run, start or Path.cwd())
    return found


def _survival(job: Job, profile: ClusterProfile) -> list[Directive]:
    """The warning before the end, and what may happen after it."""
    if job.trains:
        warning = Directive(
            "signal", f"USR1@{job.lead_s}",
            f"The warning, {job.lead_s} s before the end. Without 'B:' it goes to the ranks themselves: they end their "
            "step and save together, which the batch shell could not make them do."
            + (f" One that is preempted has {profile.grace_s} s." if profile.grace_s is not None else ""),
        )  # fmt: skip
    else:
        warning = Directive(
            "signal", f"B:USR1@{job.lead_s}",
            f"The warning, {job.lead_s} s before the end. 'B:' sends it to the batch step, all that this job has.",
        )  # fmt: skip
    if job.route == "requeue":
        again = Directive(
            "requeue", None,
            "May run again under the same id: after a preemption, a node's failure, or by its own wish at the end of "
            "its time. Jobs that wait for it wait on.",
        )  # fmt: skip
    else:
        again = Directive(
            "no-requeue", None,
            "Never runs again under the same id: this site forbids it, or it is not wanted. "
            + ("The next task of the array goes on." if job.route == "array" else "It submits a job that goes on."),
        )  # fmt: skip
    found = [warning, again]
    if job.route == "array":
        found.append(
            Directive(
                "array", f"0-{job.links - 1}%1",
                f"A chain of {job.links} links, one at a time. Links that find nothing left to do end at once.",
            )
        )  # fmt: skip
    return found


def _surroundings(job: Job, run: Path, start: Path) -> list[Directive]:
    """Where it runs, what it inherits, and where its output goes."""
    place = str(run / OUTPUT / f"{job.name}-")
    if "\\" in place:  # with one in it nothing is replaced in the name, and the backslash itself is dropped
        raise UserError(
            f"run folder {run}", "holds a backslash, and the scheduler cannot write its output there",
            "choose another folder with --runs DIR and --run NAME",
        )  # fmt: skip
    return [
        Directive("chdir", str(start), "Relative paths in the recipe start where it was submitted."),
        Directive(
            "export", "NONE",
            "Nothing of the submitting shell comes along: neither its modules nor a token in its environment, which "
            "would be kept in the accounting database. The job begins with the login environment of its node.",
        ),
        Directive(
            "propagate", "NONE",
            "Nor do its limits: login nodes allow less locked memory and fewer open files than nodes do.",
        ),
        Directive("open-mode", "append", "One file for all links: a link that starts again does not empty it."),
        Directive(
            "output", place.replace("%", "%%") + "%j.out",
            "What the job prints; the ranks' own logs lie beside it, in logs/.",
        ),
    ]  # fmt: skip


def setup(profile: ClusterProfile) -> list[str]:
    """The lines of shell that make the environment of a job: comments, and commands whose values are quoted.

    Raises:
        UserError: a variable's name looks like a secret's, or is none.
    """
    lines = [
        "# Processes that the job starts on its nodes inherit what is set here (with --export=NONE they would not).",
        export("SLURM_EXPORT_ENV", "ALL"),
    ]
    if profile.modules:
        lines += [
            f"# Modules of the profile {profile.name}. A batch shell may not know the command yet.",
            "type module >/dev/null 2>&1 || . /etc/profile",
        ]
        for module in profile.modules:
            named = shlex.quote(one_line(module, what="module"))
            lines.append(f"module load {named} || exit 2")
    if profile.interface:
        lines += [
            "# The network that ranks of several nodes talk over" + _because(profile, "interface"),
            export("NCCL_SOCKET_IFNAME", profile.interface),
            export("GLOO_SOCKET_IFNAME", profile.interface),
        ]
    if profile.scratch:
        lines += [
            "# Compiled kernels and temporary files stay on the node: a shared file system is slow at many small ones"
            + _because(profile, "scratch"),
            f"export TMPDIR={quote_but_names(profile.scratch)}",
            'export TRITON_CACHE_DIR="$TMPDIR/rumpun-triton"',
            'mkdir -p "$TMPDIR"',
        ]
    if profile.environment:
        lines.append(f"# Variables of the profile {profile.name}" + _because(profile, "environment"))
    for name, value in profile.environment.items():
        if any(secret in name.upper() for secret in _SECRETS):
            raise UserError(
                f"profile {profile.name}: environment.{name}", "looks like a secret, and job scripts are not secret",
                "remove it; `huggingface-cli login` keeps a token in your home folder",
            )  # fmt: skip
        lines.append(export(name, value))
    return lines


def _because(profile: ClusterProfile, field: str) -> str:
    text = " ".join(profile.facts.get(field, "").split())
    return f" ({text})" if text else ""
