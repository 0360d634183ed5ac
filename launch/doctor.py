"""What this machine has and lacks, each lack with its one-line fix. `rumpun doctor` prints it.

MISS means that rumpun cannot work here (exit code 1); WARN means that something will be slow, missing or refused later;
everything else is OK. Versions come from package metadata, so that only torch is imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["OK", "WARN", "MISS"]
GB = 1e9
MIN_PYTHON = (3, 11)
MIN_FREE_GB, MIN_MEMORY_GB, MIN_SHM_GB = 5.0, 4.0, 1.0
# Packages without which nothing works; the ranges are those of pyproject.toml, read from the installed metadata.
REQUIRED = ("deepspeed", "transformers", "sentence-transformers", "tokenizers", "safetensors", "pyarrow", "pydantic")
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: OK, WARN or MISS.
        found: what is there.
        fix: what to do where the status is not OK, else empty.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def checks(runs: Path = Path("runs")) -> list[Check]:
    """Look at everything; `runs` is where run folders would be written (it need not exist)."""
    found = [_python(), *_torch(), *(_package(name) for name in REQUIRED), _compiler(), _cpu_ops()]
    found += [_disk(runs), _shared_memory(), _memory(), _cores(), _threads()]
    return [*found, _slurm()]


def print_doctor(runs: Path) -> int:
    """Print the report: a table on a terminal, tab-aligned lines elsewhere. Returns 1 if anything is MISS, else 0."""
    found = checks(runs)
    if sys.stdout.isatty():
        _print_table(found)
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            line = f"{check.status:<4}  {check.name:<{width}}  {check.found}"
            print(line + (f"  → {check.fix}" if check.fix else ""))
    counts = {status: sum(check.status == status for check in found) for status in ("OK", "WARN", "MISS")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
    return 1 if counts["MISS"] else 0


def _print_table(found: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"OK": "green", "WARN": "yellow", "MISS": "red"}
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "found", "fix"):
        table.add_column(title, overflow="fold")
    for check in found:
        table.add_row(
            Text(check.status, style=colours[check.status]), Text(check.name), Text(check.found), Text(check.fix)
        )
    Console().print(table)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < MIN_PYTHON:
        return Check(
            "Python", "MISS", version, "needs 3.11 or newer: make clean && make demo PYTHON=/path/to/python3.12"
        )
    return Check("Python", "OK", version)


def requirement_of(name: str) -> Requirement:
    """The range that rumpun declares for a package; any version where rumpun itself is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("rumpun") or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == name and requirement.marker is None:
            return requirement
    return Requirement(name)


def check_version(requirement: Requirement) -> Check:
    """OK where the package is installed in the required range, else MISS."""
    name = requirement.name
    install = f"{sys.executable} -m pip install -c constraints.txt '{requirement}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "MISS", "not installed", install)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, "MISS", f"{version}, needs {requirement.specifier}", install)
    return Check(name, "OK", version)


def _package(name: str) -> Check:
    return check_version(requirement_of(name))


def _torch() -> list[Check]:
    check = _package("torch")
    if check.found == "not installed":
        return [check, Check("GPUs", "WARN", "unknown without torch", "install torch first")]
    try:
        import torch
    except (ImportError, OSError) as error:
        fix = f"install it again: {sys.executable} -m pip install --force-reinstall -c constraints.txt torch"
        return [Check("torch", "MISS", f"{check.found}, but its import fails: {error}", fix)]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    checked = Check("torch", check.status, f"{check.found} ({build})", check.fix)
    if not torch.cuda.is_available():
        return [checked, _no_gpu(cuda_build=torch.version.cuda is not None)]
    names: dict[str, int] = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        label = f"{properties.name} {properties.total_memory / GB:.0f} GB"
        names[label] = names.get(label, 0) + 1
    gpus = ", ".join(f"{count} × {label}" for label, count in names.items())
    return [checked, Check("GPUs", "OK", gpus), _nccl()]


def _no_gpu(*, cuda_build: bool) -> Check:
    if not Path("/dev/nvidiactl").exists():
        return Check("GPUs", "WARN", "none; runs on the CPU", "enough for the demo; to train, run this on a GPU node")
    if not cuda_build:
        fix = "this node has a GPU: install torch without the CPU index, or load your cluster's torch"
        return Check("GPUs", "WARN", "a GPU, but this torch is the CPU build", fix)
    fix = "ask for one (srun --gpus=1 …), see CUDA_VISIBLE_DEVICES, and compare nvidia-smi's CUDA version with torch's"
    return Check("GPUs", "WARN", "a GPU, but torch cannot use it", fix)


def _nccl() -> Check:
    import torch

    if not torch.distributed.is_nccl_available():
        return Check("NCCL", "MISS", "this torch has none", "install a torch with NCCL: GPUs cannot talk without it")
    version = torch.cuda.nccl.version()
    return Check("NCCL", "OK", ".".join(map(str, version)) if isinstance(version, tuple) else str(version))


def _compiler() -> Check:
    for name in (os.environ.get("CC") or "cc", "gcc", "clang"):
        if path := shutil.which(name):
            return Check("C compiler", "OK", path)
    return Check(
        "C compiler", "WARN", "none", "only GPU kernels that torch compiles need one: apt-get install gcc libc6-dev"
    )


def _cpu_ops() -> Check:
    return Check("DeepSpeed CPU ops", "OK", "not compiled, by choice: torch's AdamW is used, also with offloading")


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _disk(runs: Path) -> Check:
    place = _existing(runs)
    name = f"disk for {runs}"
    if not os.access(place, os.W_OK):
        return Check(name, "MISS", f"{place} is not writable", "choose another place with --runs DIR")
    free_gb = shutil.disk_usage(place).free / GB
    if free_gb < MIN_FREE_GB:
        fix = "free space or choose another place with --runs DIR; a 600M run keeps about 30 GB"
        return Check(name, "WARN", f"{free_gb:.1f} GB free", fix)
    return Check(name, "OK", f"{free_gb:.0f} GB free")


def _shared_memory() -> Check:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("/dev/shm", "WARN", "none", "NCCL and torch use it between processes: mount a tmpfs there")
    size_gb = shutil.disk_usage(place).total / GB
    if size_gb < MIN_SHM_GB:
        fix = "NCCL and torch use it between processes: docker run --shm-size=8g, or --ipc=host"
        return Check("/dev/shm", "WARN", f"{size_gb:.2f} GB", fix)
    return Check("/dev/shm", "OK", f"{size_gb:.0f} GB")


def memory_limit_bytes() -> int:
    """Memory this process may use: of the machine, or of its control group where that is less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return limit


def _memory() -> Check:
    memory_gb = memory_limit_bytes() / GB
    if memory_gb < MIN_MEMORY_GB:
        return Check(
            "memory", "WARN", f"{memory_gb:.1f} GB", "the demo needs about 3 GB: close programs or ask for more"
        )
    return Check("memory", "OK", f"{memory_gb:.0f} GB")


def _cores() -> Check:
    usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    if usable < 2:
        return Check(
            "cores", "WARN", f"{usable} of {all_cores}", "two processes will share it: ask for --cpus-per-task=2"
        )
    return Check("cores", "OK", f"{usable}" if usable == all_cores else f"{usable} of {all_cores}")


def _threads() -> Check:
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None:
        return Check("OMP threads", "OK", "OMP_NUM_THREADS is not set; rumpun gives each training process its share")
    cores = len(os.sched_getaffinity(0))
    if not value.isdigit() or int(value) < 1:
        return Check("OMP threads", "WARN", f"OMP_NUM_THREADS={value}", "must be a number of at least 1: unset it")
    if int(value) > cores:
        fix = f"more threads than cores make small operations up to 60 times slower: export OMP_NUM_THREADS={cores}"
        return Check("OMP threads", "WARN", f"OMP_NUM_THREADS={value} on {cores} cores", fix)
    return Check("OMP threads", "OK", f"OMP_NUM_THREADS={value}")


def _slurm(which: Callable[[str], str | None] = shutil.which) -> Check:
    missing = [command for command in SLURM_COMMANDS if which(command) is None]
    if len(missing) == len(SLURM_COMMANDS):
        fix = "fine on one machine; on a cluster use a login node; to try one here: rumpun testbench up"
        return Check("SLURM (optional)", "WARN", "no SLURM commands", fix)
    if missing:
        fix = "install the whole SLURM client, or load its module"
        return Check("SLURM (optional)", "WARN", f"lacks {', '.join(missing)}", fix)
    try:
        answer = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("SLURM (optional)", "WARN", f"sbatch --version fails: {error}", "ask the cluster's administrator")
    return Check("SLURM (optional)", "OK", answer.stdout.strip())
