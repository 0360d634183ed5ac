"""An ablation on a fake SLURM: each cell is submitted once, and never two that would build the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from submit_lab import TINY, Answer, Lab, new_lab

from data_prep.files import read_json
from data_prep.progress import Progress
from launch.pipeline import Plan
from launch.slurm.scheduler.commands import Slurm
from launch.stages import RECORD, Stage, Workshop

HOT, COLD = "finetune.temperature-0.1", "finetune.temperature-0.02"
AXIS = ("--axis", "finetune.temperature=0.02,0.1")


class Ablations:
    """A lab whose recipes have three small stages, and the cells in it."""

    def __init__(self, lab: Lab, sets: list[Path]) -> None:
        self.lab, self.sets = lab, sets
        self.plans: dict[str, Plan] = {}

    def stages(self, plan: Plan) -> list[Stage]:
        from eval.retrieval import EvalConfig, evaluate
        from eval.systems.listing import System
        from tests.eval.run_fixture import PlantedRanker

        self.plans[plan.run.name] = plan
        held = plan.recipe.finetune.temperature

        def write(out: Path, progress: Progress) -> dict[str, int]:
            (out / "text").write_text("x")
            return {}

        def measure(out: Path, progress: Progress) -> dict[str, int]:
            system = System("finetuned", "finetuned", "", lambda: PlantedRanker(30 * held, 1))
            config = EvalConfig(sets=["x"], bootstrap_samples=100, permutations=1000)
            evaluate(config, sets=self.sets, systems=[system], out=out, seed=0, progress=progress)
            return {}

        return [
            Stage("corpus", 1, (), {}, write), Stage("finetune", 1, ("corpus",), {"temperature": held}, write),
            Stage("eval", 1, ("finetune",), {"temperature": held}, measure),
            Stage("export", 1, ("finetune",), {}, write),
        ]  # fmt: skip

    def ablate(self, *words: str, code: int = 0) -> Answer:
        return self.lab.rumpun("ablate", TINY, *AXIS, "--slurm", *words, code=code)

    @property
    def folder(self) -> Path:
        return self.lab.place / "runs" / "ablations" / "tiny"

    @property
    def states(self) -> dict[str, str]:
        return {cell["name"]: cell["state"] for cell in read_json(self.folder / "ablation.json")["cells"]}

    def reason(self, name: str) -> str:
        cells = read_json(self.folder / "ablation.json")["cells"]
        return str(next(cell["reason"] for cell in cells if cell["name"] == name))

    def build(self, cell: str, *names: str) -> None:
        """What the jobs of a cell would do."""
        workshop = Workshop(self.folder / cell)
        for stage in self.stages(self.plans[cell]):
            if stage.name in names:
                workshop.build(stage, workshop.judge(stage), Progress())

    def end(self, cell: str, *, state: str = "COMPLETED") -> None:
        """All jobs of a cell leave the queue."""
        chain = read_json(self.folder / cell / "chain" / "jobs.json")["jobs"]
        jobs = self.lab.fake.jobs
        for entry in chain.values():
            jobs[entry["id"]]["state"] = state
        (self.lab.fake.folder / "jobs.json").write_text(json.dumps(jobs))

    def jobs(self, cell: str) -> list[str]:
        """The jobs that a cell was submitted as."""
        file = self.folder / cell / "chain" / "jobs.json"
        return sorted(read_json(file)["jobs"]) if file.exists() else []


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ablations:
    from tests.eval.run_fixture import write_set

    found = Ablations(new_lab(tmp_path), [write_set(tmp_path / "sets" / "news", documents=40, queries=30, seed=0)])
    monkeypatch.setattr(Plan, "stages", lambda plan: found.stages(plan))
    monkeypatch.setattr(Plan, "all_sets", lambda plan: found.sets)
    monkeypatch.setattr("eval.retrieval._free", lambda: None)
    monkeypatch.setattr("launch.stages.commit_of_checkout", lambda: None)
    monkeypatch.setattr(Slurm, "here", partial(Slurm.here, poll_s=0.0))
    return found


def test_cells_begin_when_what_they_share_is_there_and_the_table_comes_at_the_end(made: Ablations) -> None:
    out = made.ablate().stdout
    assert made.jobs("base") == ["eval", "finetune", "prepare"]  # no figure needs export
    assert made.states == {"base": "queued", COLD: "waiting", HOT: "waiting"} and not made.jobs(HOT)
    assert made.reason(HOT) == "for corpus of base" and "the same command collects" in out
    scripts = len(made.lab.submitted())
    made.ablate()  # nothing has changed
    assert len(made.lab.submitted()) == scripts == 3

    made.build("base", "corpus")  # while its training waits
    made.ablate()
    assert made.states == {"base": "queued", COLD: "queued", HOT: "queued"}
    assert made.jobs(HOT) == made.jobs(COLD) == ["eval", "finetune"] and len(made.lab.submitted()) == 7
    assert read_json(made.folder / HOT / "corpus" / RECORD)["taken_from"] == "base"
    script = (made.folder / HOT / "chain" / "scripts" / "finetune.sbatch").read_text()
    assert "finetune.temperature=0.1" in script and str(made.folder) in script

    for cell in ("base", COLD, HOT):
        made.build(cell, "finetune", "eval")
        made.end(cell)
    out = made.ablate().stdout
    assert set(made.states.values()) == {"done"} and len(made.lab.submitted()) == 7
    table = read_json(made.folder / "ablation.json")
    assert table["cells"][2]["difference"]["mean"] > 0 and "better" in out and "in the queue" not in out


def test_a_cell_whose_jobs_failed_is_submitted_again(made: Ablations) -> None:
    made.ablate()
    made.end("base", state="FAILED")
    made.ablate()
    assert made.states["base"] == "queued" and len(made.lab.submitted()) == 6


def test_waiting_goes_on_until_all_have_ended_and_says_what_failed(
    made: Ablations, monkeypatch: pytest.MonkeyPatch
) -> None:
    import launch.slurm.submitting.cells as cells

    rounds: list[dict[str, str]] = []

    def meanwhile(seconds: float) -> None:
        rounds.append(made.states)
        if len(rounds) == 1:
            made.build("base", "corpus", "finetune", "eval")
            made.end("base")
        else:
            made.build(COLD, "finetune", "eval")
            made.end(COLD)
            made.end(HOT, state="FAILED")

    honest = cells.run_on_cluster
    monkeypatch.setattr(cells, "run_on_cluster", lambda *a, **k: honest(*a, **k, sleep=meanwhile))
    answer = made.lab.rumpun("ablate", TINY, *AXIS, "--slurm", "--wait", code=2)
    assert rounds == [
        {"base": "queued", COLD: "waiting", HOT: "waiting"}, {"base": "done", COLD: "queued", HOT: "queued"},
    ]  # fmt: skip
    assert made.states == {"base": "done", COLD: "done", HOT: "failed"}
    assert "left the queue before finetune was built" in answer.stdout
    assert answer.stderr.startswith(f"error: cell {HOT}: failed. Fix: ")


def test_a_refusal_fails_its_cell_alone(made: Ablations) -> None:
    made.ablate()
    made.build("base", "corpus")
    made.lab.fake.refuse(
        "submit", "temperature=0.02", "Batch job submission failed: Job violates accounting/QOS policy"
    )
    made.lab.rumpun("ablate", TINY, *AXIS, "--slurm", code=2)
    assert made.states == {"base": "queued", COLD: "failed", HOT: "queued"}


def test_where_nothing_works_the_reason_is_told_once(made: Ablations) -> None:
    made.lab.fake.refuse(
        "test", "#SBATCH", "Batch job submission failed: Invalid account or account/partition combination"
    )
    answer = made.ablate(code=2)
    assert answer.stderr.count("account") and "failed. Fix: the reasons" not in answer.stderr
    assert made.lab.submitted() == []


def test_without_a_scheduler_nothing_is_written(made: Ablations) -> None:
    answer = made.lab.rumpun("ablate", TINY, *AXIS, "--slurm", slurm=False, code=2)
    assert "sbatch" in answer.stderr and not made.folder.exists()


def test_what_nodes_are_known_for_is_shared_with_all_runs(made: Ablations) -> None:
    (made.lab.place / "runs" / ".nodes").mkdir(parents=True)
    made.ablate()
    assert (made.folder / ".nodes").samefile(made.lab.place / "runs" / ".nodes")
