"""The commands for a cluster in README.md and docs/ run on one, in the order of the page."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from real_cluster import Cluster

REPO = Path(__file__).resolve().parents[3]
TINY = REPO / "tests" / "launch" / "tiny.toml"
ON_A_CLUSTER = {"submit", "status", "watch", "logs", "history", "cancel", "cluster", "preflight", "drill"}
PAGES = [REPO / "README.md", REPO / "docs" / "slurm.md", REPO / "docs" / "cluster-admin.md"]


def commands(page: Path) -> list[list[str]]:
    """The words of every command for a cluster, on the smallest recipe."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    found = [shlex.split(line)[1:] for line in lines if line.startswith("rumpun ")]
    chosen = [words for words in found if words[0] in ON_A_CLUSTER]
    return [[str(TINY) if w == "demo" else w.replace("runs/demo", "runs/tiny") for w in words] for words in chosen]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_commands_for_a_cluster(page: Path) -> None:
    assert commands(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(cluster: Cluster, page: Path) -> None:
    folder = cluster.scratch / page.stem
    folder.mkdir()
    for words in commands(page):
        if words[0] == "submit":  # quick: parts in the job itself
            words = [*words, "--set", "slurm.fan_out=false", "--set", "slurm.tasks_per_node=1"]
        said = cluster.run([sys.executable, "-m", "launch.cli", *words], cwd=folder, timeout_s=300, env=_here())
        assert (said.stdout + said.stderr).strip(), words
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_the_install_block_of_the_admins_page_names_commands_that_run(cluster: Cluster) -> None:
    """Its first lines are what every test stands on: a checkout and `make`. The last one is run here."""
    block = _block("git clone")
    learn = next(line for line in block.splitlines() if "cluster learn" in line)
    words = shlex.split(learn.replace("--partition gpu", "--partition normal"))[1:]
    profile = cluster.scratch / "mycluster.toml"
    words = [*words, "--to", str(profile)]
    cluster.run([sys.executable, "-m", "launch.cli", *words], cwd=cluster.scratch, timeout_s=60, env=_here())
    assert 'partition = "normal"' in profile.read_text()


@pytest.mark.slow
def test_the_environment_is_staged_as_the_admins_page_says(cluster: Cluster) -> None:
    shared, local = cluster.scratch / "apps", cluster.scratch / "local-disk"
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = shared / "rumpun" / ".venv" / "lib" / here / "site-packages"
    packages.mkdir(parents=True)
    (packages / "staged_here.py").write_text("")
    block = _block("rumpun-env.tar").replace("python3.11", here).replace("/shared/apps", str(shared))
    # a disk of its own for each node, where the testbench has one for all
    block = block.replace('"/local/$USER/rumpun"', f'"{local}/$USER/rumpun"').replace("/local/$USER", f"{local}/$USER")
    script = f"export USER=somebody\nset -e\n{block}\nrm -r {shared}/rumpun\n"
    script += f"srun --ntasks-per-node=1 {sys.executable} -c 'import staged_here; print(staged_here.__file__)'\n"
    job = cluster.sbatch(script, "-N2")
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.output(job).count(f"{local}/somebody/rumpun/.venv/lib/{here}/site-packages/staged_here.py") == 2


def _block(holding: str) -> str:
    """The code block of the admin's page that holds these words."""
    blocks = re.findall(r"```\n(.*?)```", PAGES[2].read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if holding in block)


def _here() -> dict[str, str]:
    return {"PYTHONPATH": str(REPO)}
