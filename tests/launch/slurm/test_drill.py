"""The drill: figures from recorded events, what is refused, where it plays, and two real ones: here, and on a cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from real_cluster import Cluster

from data_prep.errors import UserError
from data_prep.files import write_json
from launch.recipe import Recipe, load_recipe
from launch.slurm.chain import Chain, LinkLog
from launch.slurm.clusters.profile import ClusterProfile
from launch.slurm.drill.drill import LAST, SAVE, START, STEP, Conductor
from launch.slurm.drill.drill_figures import Figures, Sent, check, figures, lead_warning
from launch.slurm.drill.drill_scene import clear, plan_scene, set_up
from launch.slurm.submitting.order import Order

REPO = Path(__file__).resolve().parents[3]
TINY = REPO / "tests" / "launch" / "tiny.toml"


def events(*, second_step: int = 8, saved: int = 7) -> list[dict[str, Any]]:
    """Two links of a job: the first signalled at 130 and gone at 133.5, the second stepping at 160."""
    return [
        {"event": "begin", "time": 100.0, "job": "5", "restart": 0, "nodes": ["n1"], "ranks": 1, "start": 99.0},
        {"event": "preflight", "time": 102.0, "seconds": 2.0, "sick": {}},
        {"event": "ranks", "time": 102.0, "phase": "finetune", "attempt": 0},
        {"event": "roll_call", "time": 103.0, "seconds": 1.0, "came": [[0, "n1"]]},
        {"event": "stepping", "time": 112.0, "step": 1, "parts_s": {"starting the process": 1.5, "preparing": 7.0}},
        {"event": "ranks_ended", "time": 133.5, "outcome": "stopped", "reason": "USR1", "saved": saved, "last": 7},
        {"event": "end", "time": 134.0, "outcome": "stopped", "next": "requeue"},
        {"event": "begin", "time": 144.0, "job": "5", "restart": 1, "nodes": ["n1"], "ranks": 1, "start": 143.0},
        {"event": "stepping", "time": 160.0, "step": second_step, "parts_s": {"preparing": 9.0}},
        {"event": "ranks_ended", "time": 171.0, "outcome": "stopped", "saved": 9, "last": 9},
        {"event": "end", "time": 171.5, "outcome": "stopped", "next": "none"},
    ]


def records() -> list[dict[str, float]]:
    # the first step of each start is slow; step 7 ends half a second after the signal
    seconds = {1: 3.0, 2: 1.0, 3: 1.0, 4: 1.2, 5: 1.0, 6: 1.0, 7: 1.0, 8: 2.0, 9: 1.0}
    ends = {7: 130.5, 9: 169.0}
    return [{"step": n, "step_s": s, "time": ends.get(n, 110.0 + n)} for n, s in seconds.items()]


SENT = [Sent(STEP, 0, 130.0, 6, whole=132.5), Sent(LAST, 1, 168.5, 8, whole=170.0)]


def measured(**changes: Any) -> Figures:
    return figures(events(**changes), sent=SENT, records=records())


def recipe(**tables: dict[str, Any]) -> Recipe:
    found, _ = load_recipe(
        str(TINY), [f"{t}.{key}={json.dumps(value)}" for t, keys in tables.items() for key, value in keys.items()]
    )
    return found


def test_figures_of_a_recorded_drill() -> None:
    found = measured()
    assert (found.start, found.requeue, found.requeue_to_step) == (16.0, 10.0, 26.0)
    assert (found.step, found.longest, found.steps) == (1.0, 3.0, 9)
    first, last = found.moments
    assert (first.took_s, first.save_s, first.leave_s) == (3.5, 2.0, 1.0)  # half a second of step, two of saving
    assert (first.saved, first.went_on, first.wrong) == (7, 8, "")
    assert (last.took_s, last.save_s, last.leave_s, last.went_on) == (2.5, 1.0, 1.0, None)
    # 1.5 x 3 + 1.5 x 2 + 1 + 30, and the same without what the scheduler is late by
    assert (found.lead, found.grace) == (39, 9)
    parts = figures(events()[:7], sent=SENT[:1], records=records()[:7]).start_parts
    assert parts == {
        "preflight": 2.0, "starting the step": 1.0, "starting the process": 0.5, "preparing": 7.0, "the rest": 1.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"saved": 5}, "step 7 was done and step 5 was saved"), ({"second_step": 9}, "went on at step 9 and not at 8")],
)
def test_a_loss_is_named(changes: dict[str, int], said: str) -> None:
    found = measured(**changes)
    assert found.moments[0].wrong == said
    with pytest.raises(UserError, match=f"a signal in the middle of a step: {said}"):
        check(found, recipe(), ClusterProfile())


def test_short_warnings_are_refused_in_one_line() -> None:
    found = measured()
    with pytest.raises(
        UserError, match=r"slurm.signal_lead_s = 38: must be at least 39 .*set slurm.signal_lead_s = 40"
    ):
        check(found, recipe(slurm={"signal_lead_s": 38}), ClusterProfile())
    assert check(found, recipe(slurm={"signal_lead_s": 39}), ClusterProfile()) == ["slurm.signal_lead_s = 39 is enough"]
    with pytest.raises(UserError, match=r"launch.grace_s = 8: .* 9 s"):
        check(found, recipe(launch={"grace_s": 8}), ClusterProfile())


def test_a_link_must_have_time_for_a_step_and_a_slow_start_is_told() -> None:
    found = measured()  # 16 s of start-up, a step of 3 s, a warning of 40 s or a minute sooner: 119 s
    with pytest.raises(UserError, match=r"slurm.time_min = 1: leaves no time to train.*set slurm.time_min = 4"):
        check(found, recipe(slurm={"time_min": 1, "signal_lead_s": 40}), ClusterProfile())
    assert len(check(found, recipe(slurm={"time_min": 2, "signal_lead_s": 40}), ClusterProfile())) == 1
    slow = dataclasses.replace(found, moments=[dataclasses.replace(found.moments[0], moment=START, took_s=28.6)])
    assert "only after 29 s" in check(slow, recipe(), ClusterProfile(name="lab", grace_s=20))[2]
    assert len(check(slow, recipe(), ClusterProfile(name="lab", grace_s=30))) == 2
    assert len(check(slow, recipe(), ClusterProfile())) == 1


def test_a_grace_that_is_too_short_asks_for_checkpoints_until_they_are_there() -> None:
    found, short = measured(), ClusterProfile(name="lab", grace_s=8)
    with pytest.raises(UserError) as told:
        check(found, recipe(), short)
    assert "grace_s = 8 of cluster lab: preemption kills before the save is whole" in str(told.value)
    assert "set checkpoint.every_s = 40" in str(told.value) and "\n" not in str(told.value)
    assert "too short" in check(found, recipe(checkpoint={"every_s": 40}), short)[1]
    assert "enough for a preemption" in check(found, recipe(), ClusterProfile(name="lab", grace_s=9))[1]


def test_submitting_is_warned_by_the_last_drill(tmp_path: Path) -> None:
    assert lead_warning(tmp_path, recipe()) is None
    write_json_at(Chain(tmp_path).drill_file, {"lead_s": 200})
    warning = lead_warning(tmp_path, recipe(slurm={"signal_lead_s": 199}))
    assert warning is not None and "199 is shorter than the 200 s" in warning and "\n" not in warning
    assert lead_warning(tmp_path, recipe(slurm={"signal_lead_s": 200})) is None
    Chain(tmp_path).drill_file.write_text("{torn")
    assert lead_warning(tmp_path, recipe()) is None


def write_json_at(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, value)


def a_run(folder: Path, stages: tuple[str, ...]) -> Order:
    run = folder / "tiny"
    write_json_at(run / "run.json", {"name": "tiny", "recipe": "tiny.toml"})
    for name in stages:
        write_json_at(run / name / "stage.json", {"content": "x", "files": {}, "external": {}, "inputs": {}})
    return Order(str(TINY), (), None, run, None)


READ = ("generate", "corpus", "tokenizer", "tokens", "gate", "base", "truncate")


def test_the_scene_is_beside_the_run_and_holds_links(tmp_path: Path) -> None:
    order = a_run(tmp_path, (*READ, "pretrain"))
    scene = plan_scene(order, phase="pretrain", steps=10)
    set_up(scene)
    assert scene.place == tmp_path / ".drill" / "tiny"
    links = {p.name: p.resolve() for p in scene.place.iterdir() if p.is_symlink()}
    assert links == {name: (order.run / name).resolve() for name in READ}  # never the phase itself
    assert scene.recipe.checkpoint.every_steps == 10 and scene.recipe.launch.restarts == 0
    (scene.place / "history").mkdir()
    set_up(scene)
    assert not (scene.place / "history").exists()
    clear(scene.place)
    assert all((order.run / name / "stage.json").exists() for name in (*READ, "pretrain"))
    with pytest.raises(OSError):  # a built stage could not take a link's place
        set_up(scene)
        (tmp_path / "built").mkdir()
        os.rename(tmp_path / "built", scene.place / "gate")


def test_a_run_without_what_the_phase_reads_is_refused(tmp_path: Path) -> None:
    order = a_run(tmp_path, READ[:-2])
    with pytest.raises(UserError, match="has not built what pretrain reads: base, truncate"):
        plan_scene(order, phase="pretrain", steps=10)
    with pytest.raises(UserError, match="--phase eval: must be one of pretrain, finetune"):
        plan_scene(order, phase="eval", steps=10)
    assert not (tmp_path / ".drill").exists()


class Play:
    """A phase whose starts are written by hand."""

    def __init__(self, folder: Path) -> None:
        self.scene = plan_scene(a_run(folder, READ), phase="pretrain", steps=4)
        set_up(self.scene)
        self.scene.history.mkdir(parents=True)
        self.got: list[tuple[int, bool]] = []
        self.notes: list[str] = []
        self.conductor = Conductor(
            self.scene, [STEP, START, SAVE], steps=4, note=self.notes.append,
            send=lambda begin, last: self.got.append((begin["restart"], last)),
        )  # fmt: skip

    def log(self, restart: int) -> LinkLog:
        return LinkLog(self.scene.chain, "pretrain", job_id="7", restart=restart)

    def steps(self, last: int) -> None:
        lines = [json.dumps({"step": n, "loss": 1.0, "step_s": 0.01, "time": 1.0}) for n in range(1, last + 1)]
        (self.scene.history / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    def signalled(self) -> list[tuple[int, bool]]:
        self.conductor.look()
        return self.got


def test_each_start_gets_its_signal_at_its_moment_and_no_other(tmp_path: Path) -> None:
    play = Play(tmp_path)
    assert play.signalled() == []
    log = play.log(0)
    log.write("begin", nodes=["n1", "n2"], ranks=2, start=1.0)
    log.write("roll_call", seconds=1.0, came=[])
    log.write("stepping", step=1)
    play.steps(6)
    assert play.signalled() == []
    play.steps(7)  # four steps, and half the way to the next save
    assert play.signalled() == [(0, False)] == play.signalled()
    log.write("ranks_ended", outcome="stopped", saved=8, last=8)
    log.write("end", outcome="stopped")
    assert len(play.signalled()) == 1  # what has ended is not told twice
    log = play.log(1)
    log.write("begin", nodes=["n1", "n2"], ranks=2, start=2.0)
    log.write("ranks", attempt=0)
    assert len(play.signalled()) == 1  # not all ranks are there
    log.write("roll_call", seconds=1.0, came=[])
    assert play.signalled()[1:] == [(1, False)]
    log.write("end", outcome="stopped")
    log = play.log(2)
    log.write("begin", nodes=["n1", "n2"], ranks=2, start=3.0)
    log.write("stepping", step=9)
    play.steps(12)
    assert len(play.signalled()) == 2
    (play.scene.history / "checkpoints" / ".step-00000012.1-ab.0.building").mkdir(parents=True)
    assert play.signalled()[2:] == [(2, False)]
    log.write("end", outcome="stopped")
    log = play.log(3)
    log.write("begin", nodes=["n1", "n2"], ranks=2, start=4.0)
    log.write("stepping", step=13)
    assert play.signalled()[3:] == [(3, True)] and not play.conductor.over
    log.write("end", outcome="stopped")
    assert play.conductor.over
    assert [s.moment for s in play.conductor.sent] == [STEP, START, SAVE, LAST]


def test_a_start_that_ends_by_itself_ends_the_drill(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.log(0).write("begin", nodes=["n1"], ranks=1, start=1.0)
    play.log(0).write("end", outcome="failed", reason="rank 0 was killed by SIGKILL")
    with pytest.raises(UserError, match="start of pretrain: failed: rank 0 was killed by SIGKILL"):
        play.conductor.look()


def drill(*words: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    rumpun = Path(sys.prefix) / "bin" / "rumpun"
    return subprocess.run(
        [str(rumpun), "drill", *words], cwd=cwd, capture_output=True, text=True, timeout=600,
        env={**(env or os.environ), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def built_run(folder: Path) -> Path:
    """A run with everything that pretraining reads."""
    done = subprocess.run(
        [str(Path(sys.prefix) / "bin" / "rumpun"), "pretrain", str(TINY), "--set", "launch.stop_after_s=0.01"],
        cwd=folder, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    run = folder / "runs" / "tiny"
    assert done.returncode in (0, 75) and (run / "truncate" / "stage.json").exists(), done.stderr
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_run(tmp_path_factory.mktemp("drill"))


def contents(run: Path) -> dict[str, tuple[int, int]]:
    """Every file of a run with its size and time, but the locks and what the drill says at the end."""
    left_out = (".lock", ".locks", "chain")
    files = [p for p in run.rglob("*") if p.is_file() and p.relative_to(run).parts[0] not in left_out]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def survived(told: dict[str, Any]) -> None:
    assert [m["moment"] for m in told["moments"]] == [STEP, START, SAVE, LAST]
    for one in told["moments"]:
        assert one["wrong"] == "" and (one["moment"] == LAST or one["went_on"] == one["saved"] + 1)
    first, start, save, last = (m["saved"] for m in told["moments"])
    assert 0 < first <= start < save < last
    assert told["proof"].startswith("Proven") and re.search("through [34] starts", told["proof"])


@pytest.mark.slow
def test_a_drill_here_that_finds_the_warning_too_short(run: Path) -> None:
    before = contents(run)
    words = ["--here", "--phase", "pretrain", "--steps", "3", "--set", "slurm.signal_lead_s=20", "--json"]
    done = drill(str(TINY), *words, cwd=run.parents[1])
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    survived(told)
    assert told == json.loads((run / "chain" / "drill.json").read_text()) and told["requeue_s"] is None
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"slurm.signal_lead_s = 20: must be at least {told['lead_s']}" in line and told["lead_s"] > 30
    scratch = run.parent / ".drill" / "tiny"
    assert f"logs of the drill: {scratch / 'logs'}" in done.stderr and (scratch / "logs" / "pretrain").is_dir()
    assert contents(run) == before and not (scratch / "history").exists()


@pytest.mark.slow
def test_a_drill_on_a_cluster(cluster: Cluster, run: Path) -> None:
    before = contents(run)
    done = drill(
        str(TINY), "--cluster", "testbench", "--nodes", "2", "--tasks-per-node", "1", "--phase", "pretrain", "--steps",
        "3", "--json", cwd=run.parents[1], env=cluster.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    survived(told)
    assert (told["nodes"], told["ranks"], told["where"]) == (2, 2, "testbench")
    assert 0 < told["requeue_s"] < told["requeue_to_step_s"]
    assert contents(run) == before and not (run.parent / ".drill" / "tiny").exists()
    cluster.wait_for("an empty queue", lambda: not cluster.run(["squeue", "-h"]).stdout.strip())
