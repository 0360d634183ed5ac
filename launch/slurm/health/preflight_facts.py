"""What one node can say about itself in a second, without torch: the parts of a preflight that need no GPU.

Every function here runs on the node and returns plain JSON values; none judges. Judging needs the other nodes and is
done where all reports come together (`launch/slurm/health/preflight_judge.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOMS = ("data_prep", "train", "eval", "launch")
PACKAGES = ("rumpun", "torch", "transformers", "deepspeed", "numpy")
OLD_S = 3600.0  # no preflight takes so long: marks that are older were left by one that was killed
SEE_S = 3.0  # how long a file that another node wrote may stay unseen: network file systems look again within seconds
_SIOCGIFADDR = 0x8915  # the ioctl that asks for an interface's IPv4 address


def node_name() -> str:
    """This node's name as the scheduler writes it, or the host's short name outside a job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]


def versions() -> dict[str, str]:
    """Python and the packages, from their metadata: nothing is imported. A package that is missing says `none`."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def code_root() -> Path:
    """The folder that rumpun's rooms are imported from here."""
    return Path(__file__).resolve().parents[3]


def code_files(root: Path) -> dict[str, str]:
    """Each source file below `root` that decides what a run does → the first 12 hex digits of its SHA-256."""
    paths = [path for room in ROOMS for path in (root / room).rglob("*.py")] + list(
        (root / "ds_configs").glob("*.json")
    )
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in sorted(paths)
    }


def code_digest(files: dict[str, str]) -> str:
    """12 hex digits of all files: equal where every file is."""
    return hashlib.sha256("\n".join(f"{name} {files[name]}" for name in sorted(files)).encode()).hexdigest()[:12]


def limits() -> dict[str, int | None]:
    """Soft limits of this process: open files, and lockable memory in bytes; None is unlimited."""
    found: dict[str, int | None] = {}
    for name, which in (("nofile", resource.RLIMIT_NOFILE), ("memlock", resource.RLIMIT_MEMLOCK)):
        soft = resource.getrlimit(which)[0]
        found[name] = None if soft == resource.RLIM_INFINITY else soft
    return found


def memory_places() -> dict[str, Any]:
    """Free bytes of /dev/shm (None: there is none) and whether the node has InfiniBand, which wants locked memory."""
    try:
        shm: int | None = _free_bytes(Path("/dev/shm"))
    except OSError:
        shm = None
    return {"shm_free": shm, "infiniband": Path("/sys/class/infiniband").is_dir()}


def _free_bytes(place: Path) -> int:
    room = os.statvfs(place)
    return room.f_bavail * room.f_frsize


def address_of(interface: str | None) -> tuple[str, str]:
    """(interface, IPv4 address) that the processes of this node would talk over.

    `interface` is the cluster profile's: one name, or several with commas, of which the first that exists here counts.
    Without one it is what the host's name resolves to, as gloo does it.

    Raises:
        OSError: there is no such interface, it has no address, or the host's name resolves to nothing.
    """
    if not interface:
        host = socket.gethostname()
        try:
            return "", socket.gethostbyname(host)
        except OSError as error:
            raise OSError(f"the host's name {host} resolves to no address ({error})") from error
    here = {name for _, name in socket.if_nameindex()}
    for name in (part.strip().lstrip("=") for part in interface.split(",")):
        if name in here:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                try:
                    answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError as error:
                    raise OSError(f"interface {name} has no IPv4 address ({error.strerror})") from error
            return name, socket.inet_ntoa(answer[20:24])
    raise OSError(f"no interface {interface} here; there are {', '.join(sorted(here))}")


def folder_facts(folder: Path, *, marker: str | None, token: str, node: str) -> dict[str, Any]:
    """Can this node use a folder that all nodes share? {"free": bytes, "write_s": s} or {"error": text}.

    Args:
        folder: the shared folder.
        marker: what the file that the controller wrote there holds; None where it could write none, or for a folder
            that is this node's own.
        token: the name of this preflight.
        node: this node's name: its own file is seen by the controller and removed by it.
    """
    if not folder.is_dir():
        return {"error": "there is no such folder"}
    began = time.monotonic()
    try:
        descriptor = os.open(folder / f".preflight-{token}-{node}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, token.encode() * 512)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return {"error": f"cannot be written ({error.strerror})"}
    facts: dict[str, Any] = {"free": _free_bytes(folder), "write_s": round(time.monotonic() - began, 4)}
    if marker is not None and not sees(folder / f".preflight-{token}", marker):
        facts["error"] = "does not hold what the first node wrote there: it is another file system"
    return facts


def sees(path: Path, content: str | None = None) -> bool:
    """Does a file that another node wrote show here, with this content (None: any), within a few seconds?"""
    until = time.monotonic() + SEE_S
    while True:
        try:
            if (found := path.read_text()) and content in (None, found):
                return True
        except OSError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.1)


def _cpu_ticks() -> dict[int, tuple[int, str]]:
    """CPU ticks and name of every visible process."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            name, _, rest = Path(entry.path, "stat").read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        found[int(entry.name)] = (int(fields[11]) + int(fields[12]), name.partition("(")[2])
    return found


def foreign_load(window_s: float = 0.25) -> dict[str, Any]:
    """CPUs that other processes keep busy, over a short window in which this process sleeps.

    Returns:
        "cpus": CPUs of this node that this process may use; "busy": CPUs' worth of other processes' work; "top": names
        of the busiest. Where processes of others are hidden, they do not count.
    """
    before, began = _cpu_ticks(), time.monotonic()
    time.sleep(window_s)
    after, passed = _cpu_ticks(), time.monotonic() - began
    ticks = os.sysconf("SC_CLK_TCK")
    used = {
        pid: (now - before[pid][0]) / ticks / passed
        for pid, (now, _) in after.items()
        if pid in before and pid != os.getpid()
    }
    top = sorted((pid for pid in used if used[pid] > 0.2), key=lambda pid: -used[pid])[:3]
    busy = sum(used.values())
    return {"cpus": len(os.sched_getaffinity(0)), "busy": round(busy, 1), "top": [after[pid][1] for pid in top]}


def matrix_cpu(*, windows: int = 3, window_s: float = 0.03, size: int = 384) -> list[float]:
    """GFLOP/s of one core at an fp32 matrix product: the best of several windows.

    By this thread's CPU time: a core that throttles shows, a neighbour that takes turns with it does not (that is what
    `foreign_load` tells). numpy is imported and not torch: as fast, for 0.1 s of import instead of 2 s, and on four
    nodes that share two busy cores 0.3 s instead of 15 s.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import numpy

    left = numpy.full((size, size), 0.5, dtype=numpy.float32)
    right, out = left.copy(), numpy.empty_like(left)
    numpy.matmul(left, right, out=out)
    best = 0.0
    until = time.monotonic() + 3
    for _ in range(windows):
        if best and time.monotonic() > until:  # others leave it little of the core
            break
        count, began = 0, time.thread_time()
        while (passed := time.thread_time() - began) < window_s or not count:
            numpy.matmul(left, right, out=out)
            count += 1
        best = max(best, 2 * size**3 * count / passed / 1e9)
    if not numpy.array_equal(out, numpy.full_like(out, 0.25 * size)):
        raise ArithmeticError("a matrix product came out wrong")
    return [round(best, 1)]


def remove_marks(folders: Sequence[Path], token: str) -> None:
    """Remove every file that this preflight, or a killed one of long ago, left in the folders, as far as that goes."""
    for folder in folders:
        try:
            for path in folder.glob(".preflight-*"):
                if token in path.name or time.time() - path.stat().st_mtime > OLD_S:
                    path.unlink(missing_ok=True)
        except OSError:
            continue
