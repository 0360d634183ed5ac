"""What every test shares: one thread a process, no network, and where the data lie."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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
