"""A cluster's profile: `slurm/clusters/NAME.toml`, what jobs ask for there and what its nodes need."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from data_prep.config import Section
from data_prep.errors import UserError

CLUSTERS = Path(__file__).resolve().parents[3] / "slurm" / "clusters"
Route = Literal["requeue", "successor", "array"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _one_line(text: str) -> str:
    # a directive or a variable ends where its line ends: what follows a break would be another one
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise ValueError("holds a line break or another control character. Fix: use one line of plain text")
    return text


Text = Annotated[str, AfterValidator(_one_line)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ClusterProfile(Section):
    """What is true of a cluster, not of an experiment. Unset values are the cluster's own defaults."""

    name: Annotated[str, Field(pattern=NAME)] = "default"
    """Name of the profile: letters, digits, '.', '_' and '-'; the file's name."""
    about: str = ""
    """One sentence on the cluster, shown by `rumpun cluster list`."""
    partition: Text | None = None
    """Partition of training jobs; several with commas: whichever is free first."""
    account: Text | None = None
    """Account that is charged."""
    qos: Text | None = None
    """Quality of service: other limits and priority on sites that use it."""
    constraint: Text | None = None
    """Features that nodes must have, e.g. `a100&infiniband`; training wants equal nodes."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs of a node that a training job takes, one process for each; 0: a cluster without GPUs."""
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]+$")] | None = None
    """Name of the GPU as the scheduler knows it; needed where one partition holds several kinds."""
    cpus_per_node: Annotated[int, Field(ge=1)] | None = None
    """Cores of a node that a training job takes, shared out to its processes."""
    memory_gb: Annotated[int, Field(ge=1)] | None = None
    """Host memory of a node that a training job takes, in GiB; a little less than the node has."""
    stage_partition: Text | None = None
    """Partition of jobs without ranks (preparing, evaluating, exporting); unset: the same. CPU nodes cost less."""
    stage_account: Text | None = None
    """Account of those jobs; unset: the same."""
    stage_constraint: Text | None = None
    """Features for those jobs; unset: none."""
    modules: list[Text] = Field(default_factory=list)
    """Loaded with `module load` before anything runs, in this order."""
    environment: dict[Variable, Text] = Field(default_factory=dict)
    """Variables of every job, e.g. NCCL settings; they win over the submitting shell's."""
    interface: Annotated[str, Field(pattern=r"^[=^]?[A-Za-z0-9_.,:@-]+$")] | None = None
    """Network interface that ranks meet on (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); unset: the libraries choose."""
    scratch: Text | None = None
    """Folder on every node's own disk, e.g. /local/$USER: caches go there, and the staged environment."""
    container: Literal["none", "apptainer", "pyxis"] = "none"
    """What jobs run in: this checkout's environment, Apptainer, or Pyxis (the scheduler's own --container-image)."""
    container_image: Text | None = None
    """File or name of the image; needed with a container."""
    container_mounts: list[Text] = Field(default_factory=list)
    """Folders to see inside, `FROM` or `FROM:TO`; the checkout, the data and the run folder must be among them."""
    grace_s: Annotated[int, Field(ge=0)] | None = None
    """Seconds between the warning and the end when a job is preempted; 0: it is killed at once. Unset: not known."""
    max_time_min: Annotated[int, Field(ge=1)] | None = None
    """Longest time limit of a job; longer wishes are refused before submitting."""
    route: Route = "requeue"
    """How a stopped job goes on: `requeue` (the same job again) is best; `successor` (a new job after this one) and
    `array` (a chain queued at once) are for sites that forbid it."""
    max_array_tasks: Annotated[int, Field(ge=1)] | None = None
    """Tasks that an array of jobs may have; more parts of a data stage are then shared out to fewer tasks."""
    exclude: list[Text] = Field(default_factory=list)
    """Nodes that jobs never get, e.g. known bad ones."""
    facts: dict[str, str] = Field(default_factory=dict)
    """The command and line that each learned value was taken from (written by `rumpun cluster learn`)."""


def profiles(folder: Path = CLUSTERS) -> list[Path]:
    """The profiles that there are."""
    return sorted(folder.glob("*.toml"))


def find_profile(name: str) -> Path:
    """The file of a profile given as a path or as the name of one in slurm/clusters/.

    Raises:
        UserError: there is none; with the nearest name and all of them.
    """
    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        if path.is_file():
            return path
    elif (CLUSTERS / f"{name}.toml").is_file():
        return CLUSTERS / f"{name}.toml"
    known = [p.stem for p in profiles()]
    near = difflib.get_close_matches(path.stem, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    rest = f"known: {', '.join(known) or 'none'}; to make one: rumpun cluster learn NAME"
    raise UserError(f"cluster {name!r}", "no such profile", f"{hint}{rest}")


def load_profile(name: str | None) -> ClusterProfile:
    """Read and check a profile.

    Args:
        name: of one in slurm/clusters/, or a path; None: an empty one, nothing but the cluster's own defaults.

    Raises:
        UserError: no such profile, or a mistake in it, with its key and the nearest valid one.
    """
    if name is None:
        return ClusterProfile()
    path = find_profile(name)
    where = f"profile {path.name}"
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(where, f"is not valid TOML ({error})", f"mend {path} at that place") from error
    except OSError as error:
        raise UserError(where, f"cannot be read ({error.strerror})", "check its permissions") from error
    tree.setdefault("name", path.stem)
    try:
        profile = ClusterProfile(**tree)
    except ValidationError as error:
        raise _complaint(where, path, error) from None
    if profile.container != "none" and not profile.container_image:
        raise UserError(
            f"{where}: container = {profile.container!r}",
            "needs container_image",
            "name the image, or remove container",
        )
    return profile


def _complaint(where: str, path: Path, error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    markers = ("function-", "constrained-", "literal[")
    keys = [str(part) for part in first["loc"] if part != "[key]" and not str(part).startswith(markers)]
    dotted, fields = ".".join(keys), list(ClusterProfile.model_fields)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(dotted, fields, 1, cutoff=0.5)
        fix = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(fields)}"
        return UserError(f"{where}: {dotted}", "unknown key", fix)
    rule, _, fix = str(first["msg"]).removeprefix("Value error, ").partition(". Fix: ")
    given = first.get("input")
    shown = json.dumps(given, default=str, ensure_ascii=False) if not isinstance(given, dict) else "a table"
    if keys and (reason := ClusterProfile.model_fields[keys[0]].description if keys[0] in fields else None):
        fix = fix or f"mend {path.name} ({' '.join(reason.split())})"
    return UserError(f"{where}: {dotted} = {shown}", rule[0].lower() + rule[1:], fix or f"mend {path.name}")


def profile_lines(profile: ClusterProfile, *, notes: dict[str, str] | None = None) -> Iterator[str]:
    """A profile as commented TOML: every value with its meaning and, where it was learned, the fact behind it.

    Args:
        notes: a remark for a value, in place of its meaning, e.g. how to find it out.
    """
    notes = notes or {}
    facts = profile.facts
    tables: list[str] = []
    for key, field in ClusterProfile.model_fields.items():
        if key == "facts":
            continue
        value = getattr(profile, key)
        lines = _comment(notes.get(key) or field.description or "")
        lines += _comment(f"From {facts[key]}") if key in facts else []
        if key == "environment":
            head = "[environment]" if value else "# [environment]"
            tables += ["", *lines, head, *(f"{name} = {_toml(text)}" for name, text in value.items())]
        elif value is None or (
            value == field.get_default(call_default_factory=True) and key not in facts and key != "name"
        ):
            default = "" if value in (None, []) else f"{key} = {_toml(value)}"
            yield from ("", *lines, f"# {default or key + ' = …'}")
        else:
            yield from ("", *lines, f"{key} = {_toml(value)}")
    yield from tables
    if facts:
        yield from ("", "# The command and the line behind each learned value.", "[facts]")
        yield from (f"{key} = {_toml(text)}" for key, text in facts.items())


def _comment(text: str, width: int = 116) -> list[str]:
    words, lines = re.split(r"\s+", text.strip()), [""]
    for word in words:
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [f"# {line}" for line in lines if line]


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
