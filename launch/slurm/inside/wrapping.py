"""What starts Python on a node: this environment, or a container's.

The controller stays outside: it needs the scheduler's commands, which an image does not have.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.slurm.clusters.profile import ClusterProfile


def wrapping(profile: ClusterProfile) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """(words before the program, options of the step, the program) for ranks on this cluster."""
    mounts = profile.container_mounts
    if profile.container == "apptainer":
        binds = [word for mount in mounts for word in ("--bind", mount)]
        devices = ["--nv"] if profile.gpus_per_node else []
        return ("apptainer", "exec", *devices, *binds, str(profile.container_image)), (), "python3"
    if profile.container == "pyxis":
        named = [f"--container-mounts={','.join(mounts)}"] if mounts else []
        return (), (f"--container-image={profile.container_image}", *named), "python3"
    return (), (), sys.executable
