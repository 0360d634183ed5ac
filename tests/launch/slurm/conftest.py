"""A real SLURM cluster for the tests of this folder: one for each test process, of four nodes, on this machine.

Tests that use the fixture `cluster` are marked `slow`. After each of them its jobs are cancelled and the nodes mended; a
module that says `KEEPS_JOBS = True` keeps its jobs until its last test. `new_bench` makes more clusters, with other settings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from real_cluster import Cluster, free_folder, sweep_abandoned, why_not

# A lost node is seen after 8 to 10 seconds instead of 16.
FAST_LOSS = ("--slurm-conf", "SlurmdTimeout=5", "--slurm-conf", "MessageTimeout=3")


@pytest.fixture(scope="session")
def new_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Brings clusters up: `new_bench("--nodes", "2", "--accounting", "no")`. All are purged when the session ends."""
    if lacks := why_not():
        pytest.skip(f"no SLURM cluster here: {lacks}")
    sweep_abandoned()
    with ExitStack() as purges:  # each is tried, whatever becomes of the others

        def bring_up(*options: str) -> Cluster:
            cluster = Cluster(free_folder(), tmp_path_factory.mktemp("cluster"))
            purges.callback(cluster.purge)
            cluster.up(*options)
            return cluster

        yield bring_up


@pytest.fixture(scope="session")
def cluster(new_bench: Callable[..., Cluster]) -> Cluster:
    """The cluster of this test process: four nodes with two fake GPUs each, accounting, partitions normal, low, high."""
    return new_bench(*FAST_LOSS)


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "cluster" in request.fixturenames and not getattr(request.module, "KEEPS_JOBS", False):
        request.getfixturevalue("cluster").mend()


@pytest.fixture(autouse=True, scope="module")
def _mended_last(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if getattr(request.module, "KEEPS_JOBS", False):
        request.getfixturevalue("cluster").mend()
