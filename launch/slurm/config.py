"""`[slurm]` of a recipe: what its jobs ask for, and what becomes of one that had to stop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import Section

Route = Literal["requeue", "successor", "array"]


class SlurmConfig(Section):
    """Never changes a result: neither nodes nor processes are part of what a stage depends on."""

    cluster: str | None = None
    """Profile in slurm/clusters/ (or a path); unset: the cluster's own defaults. `--cluster` wins."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes of a training job. May differ from one submission to the next: training goes on exactly."""
    tasks_per_node: Annotated[int, Field(ge=1)] | None = None
    """Processes on each node; unset: one for each GPU of the profile's nodes, else `launch.nproc`."""
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """Cores of each process; unset: the profile's cores shared out, else `launch.threads_per_process`."""
    memory_gb: Annotated[int, Field(ge=1)] | None = None
    """Host memory of each node; unset: the profile's, else the cluster's default."""
    time_min: Annotated[int, Field(ge=1)] = 1440
    """Minutes that one link of a training job may take; a longer training takes several links."""
    stage_time_min: Annotated[int, Field(ge=1)] = 240
    """The same for jobs without ranks: preparing, evaluating, exporting."""
    signal_lead_s: Annotated[int, Field(ge=1, le=65535)] = 180
    """Seconds between the warning and the end of a training job: more than a step and a save (see `rumpun drill`)."""
    stage_lead_s: Annotated[int, Field(ge=1, le=65535)] = 30
    """The same for jobs without ranks: they drop the part they are at."""
    requeues: Annotated[int, Field(ge=0)] = 50
    """Links after the first that a job may take, for whatever reason: an endless loop ends here."""
    route: Literal["auto", "requeue", "successor", "array"] = "auto"
    """How a stopped job goes on: the same again, a new one after it, or the next of an array of `links`. `auto`: as the
    profile says."""
    links: Annotated[int, Field(ge=2)] = 8
    """Jobs of an array chain, which is queued as a whole; more than the training needs end at once."""
    fan_out: bool = True
    """Compute the parts of data stages as array jobs; off: as processes of the stage's own job."""
    preflight: bool = True
    """Look at every node before the ranks start; a sick one is named, remembered and left out of the next link."""
    start_within_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for all ranks of a start to report; then the missing ones are named and the start is given up."""
