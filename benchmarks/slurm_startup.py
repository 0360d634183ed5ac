"""What a cluster's job pays beside its steps: the way to the first step, the save at a warning, and being requeued.

`python benchmarks/slurm_startup.py` brings up a testbench of four nodes on this machine (root, SLURM's packages), takes
the tiny recipe through rehearsals of preemption on 1, 2 and 4 nodes with one rank each, and writes
results/slurm_startup.md (some minutes); `--quick` takes one node and one warning, prints and writes nothing. Where the
machine lacks what a testbench needs it says so in one line and ends.

The rehearsals are those of `rumpun drill`: ranks are warned in the middle of a step, save, leave, and the job requeues
itself. All times are from the events that every link writes; the processor time is that of the commands a user starts,
with the scheduler's own commands that they start in turn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from _facts import REPO, RESULTS, machine_lines, table, versions

sys.path.insert(0, str(REPO))

TESTBENCH = REPO / "slurm" / "testbench" / "testbench"
RECIPE = REPO / "tests" / "launch" / "tiny.toml"
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "ip", "nsenter")
STEPS = 6
PLACES = {
    "the controller: Python, recipe, questions to the scheduler": "controller",
    "preflight of all nodes": "preflight",
    "starting the ranks, roll call": "roll call",
}


def why_not() -> str:
    """What this machine lacks for a testbench; empty where it lacks nothing."""
    if os.geteuid() != 0:
        return "not root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    return f"no {', '.join(missing)}" if missing else ""


@contextmanager
def testbench(nodes: int) -> Iterator[None]:
    """A cluster of its own; this process and its children use it inside the block."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="rumpun-bench-", dir=parent) as folder:
        place = Path(folder) / "cluster"
        words = [TESTBENCH, "up", "--at", place, "--nodes", str(nodes), "--accounting", "no"]
        before = os.environ["PATH"]
        try:
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            os.environ.update(PATH=f"{place / 'bin'}{os.pathsep}{before}", RUMPUN_TESTBENCH=str(place))
            yield
        finally:
            os.environ["PATH"] = before
            subprocess.run([TESTBENCH, "purge", "--at", place], stdout=subprocess.DEVNULL, check=False)


def build(runs: Path) -> None:
    """Everything of the tiny recipe that comes before pretraining."""
    from launch.pipeline import Plan
    from launch.recipe import load_recipe
    from launch.stages import leading

    recipe, _ = load_recipe(str(RECIPE), [])
    stages = Plan(recipe, runs / recipe.name, runs / recipe.name / "generate").stages()
    for name in [stage.name for stage in stages if stage.name in leading(stages, "pretrain") - {"pretrain"}]:
        words = [sys.executable, "-m", "launch.cli", "run", str(RECIPE), "--only", name, "--runs", str(runs)]
        subprocess.run(words, check=True, cwd=REPO, capture_output=True)


def rehearse(runs: Path, nodes: int, warnings: int) -> tuple[list[list[Mapping[str, Any]]], list[Any]]:
    """Warn a training on so many nodes so often. Returns the events of its links, and what was sent to each."""
    from launch.slurm.drill.drill import STEP, Conductor, OnCluster
    from launch.slurm.drill.drill_figures import links_of
    from launch.slurm.drill.drill_scene import plan_scene, set_up, tear_down
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.order import new_order

    def note(line: str) -> None:
        print(f"[{nodes} nodes] {line}", file=sys.stderr)

    asked = {"nodes": nodes, "tasks_per_node": 1}
    order = new_order(
        str(RECIPE), overrides=["pretrain.epochs=60", "slurm.signal_lead_s=60"], data=None, runs=runs, run_name=None,
        cluster="testbench", asked=asked,
    )  # fmt: skip
    scene = plan_scene(order, phase="pretrain", steps=STEPS)
    set_up(scene)
    try:
        on = OnCluster(scene, Slurm.here(poll_s=1.0), note)
        conductor = Conductor(scene, [STEP] * warnings, steps=STEPS, send=on.send, note=note)
        on.submit()
        on.rehearse(conductor)
        conductor.look()
        return links_of(scene.chain.events(scene.phase)), conductor.sent
    finally:
        tear_down(scene, keep_logs=False)


def figures(links: Sequence[Sequence[Mapping[str, Any]]], sent: Sequence[Any]) -> dict[str, list[float]]:
    """Seconds of each part, of every link."""
    from launch.slurm.drill.drill_figures import named

    found: dict[str, list[float]] = {}

    def add(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    for link in links:
        begin, looked, call = link[0], named(link, "preflight"), named(link, "roll_call")
        started, stepping = named(link, "ranks"), named(link, "stepping")
        if not (looked and call and started and stepping):
            continue
        places = dict(stepping["parts_s"])
        first = next(iter(places))  # in it rank 0 waits for the roll call
        places[first] = max(0.0, places[first] - call["seconds"])
        # the scheduler tells the start of a job in whole seconds: half a second either way
        add("controller", started["time"] - begin["start"] - looked["seconds"])
        add("preflight", looked["seconds"])
        add("roll call", call["seconds"])
        for name, seconds in places.items():
            add(f"rank: {name}", seconds)
        add("all", stepping["time"] - begin["start"])
    for one in sent:
        ended = named(links[one.link], "ranks_ended")
        if ended is not None and one.whole is not None:
            add("warned -> whole", one.whole - one.time)
            add("warned -> gone", ended["time"] - one.time)
    for link, following in itertools.pairwise(links):
        end, stepping = named(link, "end"), named(following, "stepping")
        if end is not None and stepping is not None:
            add("requeue -> start", following[0]["start"] - end["time"])
            add("requeue -> step", stepping["time"] - end["time"])
    return found


def spread(values: Sequence[float]) -> str:
    """`median (lowest-highest)`."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"


def commands(runs: Path, nodes: int, repetitions: int) -> dict[str, list[float]]:
    """Processor seconds of submit, status and cancel, of the whole recipe."""
    found: dict[str, list[float]] = {"submit": [], "status": [], "cancel": []}
    common = ["--runs", str(runs), "--run", "asked"]
    words = {
        "submit": ["submit", str(RECIPE), *common, "--cluster", "testbench", "--nodes", str(nodes), "--hold"],
        "status": ["status", str(runs / "asked")],
        "cancel": ["cancel", str(runs / "asked")],
    }
    for _ in range(repetitions):
        for name, given in words.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-m", "launch.cli", *given], cwd=REPO, capture_output=True, text=True, check=False
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode != 0:
                raise SystemExit(f"{name}: {done.stderr}")
            found[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return found


def page(measured: Mapping[int, Mapping[str, list[float]]], asked: Mapping[str, list[float]]) -> str:
    """The results as Markdown, without the lines on the machine."""
    head = [f"{n} node{'s' * (n > 1)}" for n in measured]

    def rows(names: Mapping[str, str]) -> list[list[str]]:
        return [[label, *(spread(found.get(key, [])) for found in measured.values())] for label, key in names.items()]

    ranks = dict.fromkeys(key for found in measured.values() for key in found if key.startswith("rank: "))
    starts = {**PLACES, **{f"rank 0: {key.removeprefix('rank: ')}": key for key in ranks}, "all": "all"}
    saves = {"until the checkpoint is whole": "warned -> whole", "until the ranks are gone": "warned -> gone"}
    again = {
        "until the scheduler starts it again (5 s of it are its pause, cred_expire)": "requeue -> start",
        "until the first step has ended": "requeue -> step",
    }
    count = max(len(found.get("all", [])) for found in measured.values())
    parts = [
        "# What a job pays beside its steps",
        f"The tiny recipe, pretraining, one rank on each node. Seconds: median (lowest-highest) of {count} links. All"
        " nodes are namespaces of one machine and share its cores: more nodes are more processes on the same cores, and"
        " imports come from the page cache. What the figures show is how much is ours, not how a cluster scales.",
        "## From the job's start to the end of its first step",
        table(["", *head], rows(starts)),
        "## From the warning in the middle of a step",
        table(["", *head], rows(saves)),
        "## From the link's end",
        table(["", *head], rows(again)),
        "## Processor seconds of the commands",
        table(["command", "processor seconds"], [[f"rumpun {name}", spread(v)] for name, v in asked.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--note", default="", help="a line for the page, such as what else ran on the machine")
    given = parser.parse_args()
    if lacks := why_not():
        print(f"skipped: no SLURM cluster here: {lacks}")
        return
    load, began = os.getloadavg()[0], time.monotonic()
    counts, warnings, repetitions = ((1,), 1, 1) if given.quick else ((1, 2, 4), 3, 5)
    with tempfile.TemporaryDirectory(prefix="rumpun-bench-") as folder, testbench(max(counts)):
        runs = Path(folder) / "runs"
        build(runs)
        measured = {nodes: figures(*rehearse(runs, nodes, warnings)) for nodes in counts}
        asked = commands(runs, max(counts), repetitions)
    text = page(measured, asked)
    if given.note:
        text += f"\n{given.note}\n"
    packages = versions(sys.executable, ("torch", "transformers", "deepspeed"))
    lines = machine_lines(threads=1, load_before=load, packages=packages)
    text += "\n" + "\n".join(lines) + f"\nIt took {(time.monotonic() - began) / 60:.0f} minutes.\n"
    print(text, end="")
    if not given.quick:
        (RESULTS / "slurm_startup.md").write_text(text)


if __name__ == "__main__":
    main()
