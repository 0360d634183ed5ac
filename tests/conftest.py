"""What every test shares: one thread a process, no network, where the data lie, runs made once, and who runs what when.

Slow tests run four at a time (`make test`): those of a group one after another on one worker, since they share costly
fixtures, and the longest groups first, so that all workers end at about the same time.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before any test imports torch, and inherited by every process that a test starts.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    DS_ACCELERATOR="cpu",
    MPLBACKEND="Agg",
)
# A test that runs inside a SLURM job or a torchrun of its own must not see it.
for _name in list(os.environ):
    if _name.startswith(("SLURM_", "RUMPUN_TEST_")) or _name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        del os.environ[_name]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell without job control starts background commands with ^C ignored; tests of ^C need one
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parent.parent

# Tests whose names begin like this share a group; the longest beginning counts. The others: one group a file.
GROUPS = {
    # the chain of jobs is compared with the demo, which is made first
    "tests/test_demo_result.py": "demo",
    "tests/launch/slurm/test_whole_chain.py": "demo",
    "tests/train/survival/": "survival",
    "tests/train/survival/test_soak.py": "soak",
    # ranks are forked from one process that has imported everything
    "tests/train/invariance/": "ranks",
    "tests/train/test_precision.py": "ranks",
    "tests/train/test_pretrain.py": "ranks",
    "tests/train/test_zero_state.py": "ranks",
}
# Files whose tests share nothing that is made for them alone: a group each.
APART = (
    "tests/test_benchmarks.py",
    "tests/test_docs.py",
    "tests/launch/test_pipeline.py",
    "tests/launch/test_history.py",
)
# Seconds that groups take, several at a time on two cores; the others: 3 s a test. A wrong number costs time and nothing else.
SECONDS: dict[str, float] = {
    "demo": 600,
    "tests/launch/slurm/test_survival.py": 400,
    "tests/launch/slurm/test_routes.py": 200,
    "tests/launch/slurm/test_testbench.py": 170,
    "tests/launch/slurm/test_testbench_processes.py": 120,
    "tests/launch/slurm/test_fanout_slurm.py": 120,
    "tests/launch/slurm/test_commands.py": 110,
    "tests/launch/slurm/test_preflight_cluster.py": 100,
    "tests/launch/slurm/test_submit_cluster.py": 80,
    "tests/launch/slurm/test_drill.py": 80,
    "tests/launch/slurm/test_status_cluster.py": 60,
    "survival": 250,
    "ranks": 150,
    "tests/test_readme.py": 130,
    "tests/test_benchmarks.py::test_policies_are_mined_trained_and_scored_alike": 120,
    "tests/launch/test_pipeline.py::test_kill_minus_nine_in_every_stage_ends_in_the_same_table": 100,
    "tests/launch/test_history.py::test_a_user_changes_only_the_resources": 80,
    "tests/test_real_data.py": 80,
    "tests/test_benchmarks.py::test_rumpun_trains_as_sentence_transformers_does": 70,
    "tests/train/test_heartbeat.py": 60,
    "tests/test_benchmarks.py::test_a_real_model_is_finetuned_by_both": 45,
    "tests/test_benchmarks.py::test_a_resumed_training_pays_for_checking_and_reading_its_checkpoint": 45,
    "tests/test_benchmarks.py::test_all_ways_of_embedding_agree_and_the_cache_saves_what_it_knows": 45,
    "tests/launch/test_pipeline.py::test_a_changed_value_rebuilds_exactly_what_depends_on_it": 40,
    "tests/data_prep/neighbors/test_benchmark.py": 40,
    "soak": 40,
    "tests/train/history/test_checkpoint_crash.py": 35,
    "tests/test_docs.py::test_every_step_of_a_page_runs-data-": 30,
    "tests/train/hub/test_push.py": 30,
    "tests/launch/test_ablate.py": 40,
    "tests/test_docs.py::test_every_step_of_a_page_runs-mining-": 30,
}


def _group(name: str) -> str:
    """The group of a test, by its node id."""
    fitting = [start for start in GROUPS if name.startswith(start)]
    if fitting:
        return GROUPS[max(fitting, key=len)]
    file = name.split("::")[0]
    return re.sub(r"[\[\]@]", "-", name) if file in APART else file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest group first; nothing without `--dist loadgroup`."""
    if not getattr(config.option, "loadgroup", False):
        return
    groups: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[_group(item.nodeid)].append(item)
    groups["demo"].sort(key=lambda item: not item.nodeid.startswith("tests/test_demo_result.py"))

    def seconds(name: str) -> float:
        return SECONDS.get(name, 3.0 * sum("slow" in item.keywords for item in groups[name]))

    items.clear()
    for name in sorted(groups, key=seconds, reverse=True):
        items += groups[name]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups as `_group` says. xdist's own marks end in the node ids, which pytest 9.2 keeps elsewhere."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Grouped(config, log)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of Malaysian texts: RUMPUN_DATA, else ../shared/data beside the checkout; skips without one."""
    named = os.environ.get("RUMPUN_DATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    if not (folder / "eval_dev").is_dir():
        pytest.skip(f"no data in {folder}: set RUMPUN_DATA to a folder with corpora/ and eval_dev/")
    return folder


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills once in a test session, whichever of its workers asks first; the others wait."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / "once" / name, shared / "once" / f"{name}.done"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            if folder.exists():
                pytest.fail(f"{name}: a test before has tried to make it, and failed", pytrace=False)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def _rumpun(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *map(str, words)], capture_output=True, text=True, timeout=1400
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished `rumpun demo`, and what it printed in `../stdout.txt`. All share it: change nothing."""

    def make(folder: Path) -> None:
        (folder / "stdout.txt").write_text(_rumpun("demo", "--runs", folder))

    return _once(tmp_path_factory, "demo", make) / "demo"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished `rumpun run tests/launch/tiny.toml`, as `demo_run`. Copies of it are as good as it."""

    def make(folder: Path) -> None:
        (folder / "stdout.txt").write_text(_rumpun("run", REPO / "tests" / "launch" / "tiny.toml", "--runs", folder))

    return _once(tmp_path_factory, "tiny", make) / "tiny"
