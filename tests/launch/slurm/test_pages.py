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


def _here() -> dict[str, str]:
    return {"PYTHONPATH": str(REPO)}
