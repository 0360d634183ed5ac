"""How a checkpoint looks on the disk: flat runs of every parameter and its moments, and a manifest of where each lies.

Invariant: a range that no file or more than one file holds is damage, never a guess, whether it is met while writing
or while reading.

    step-00000120/manifest.json                      format, step, ranks, facts, parameters, files, own checksum
    step-00000120/state-0000-of-0002.safetensors     1-D tensors `KIND:START:NAME`, and `own:NAME` for the rank's own

The manifest's checksum covers its JSON with sorted keys and without the checksum; later formats keep that rule, so that
a newer format can be told from a damaged number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.history.folder import MANIFEST

FORMAT = 1
OWN = "own"


class Damaged(Exception):
    """This checkpoint is not what was written; the message names the file and what is wrong with it."""


class NewerFormat(Exception):
    """An intact checkpoint of a later version of rumpun; the message is its format number."""


class Run(NamedTuple):
    """Elements [start, stop) of a parameter, and the file that holds them."""

    start: int
    stop: int
    file: str


Index = dict[tuple[str, str], list[Run]]


def state_name(rank: int, ranks: int) -> str:
    """The file that a rank writes."""
    return f"state-{rank:04d}-of-{ranks:04d}.safetensors"


def tensor_key(kind: str, start: int, name: str) -> str:
    """The name of a run inside a file; any parameter name may follow the second colon."""
    return f"{kind}:{start}:{name}"


def own_key(name: str) -> str:
    """The name of a rank's own tensor inside its file."""
    return f"{OWN}:{name}"


def build_index(parameters: Mapping[str, Sequence[int]], files: Iterable[Mapping[str, Any]]) -> Index:
    """Where each (parameter, kind) lies.

    Args:
        parameters: shapes by name.
        files: with `file` and `pieces`, a list of [name, start, stop, kinds].

    Raises:
        Damaged: a run is missing, is there twice, or belongs to no parameter.
    """
    index: Index = {}
    for file in files:
        for name, start, stop, kinds in file["pieces"]:
            for kind in kinds:
                index.setdefault((name, kind), []).append(Run(start, stop, file["file"]))
    held = {name for name, _ in index}
    sizes = {name: math.prod(tuple(shape)) for name, shape in parameters.items()}
    for name, size in sizes.items():
        if name not in held and size:
            raise Damaged(f"no file holds {name}")
    for (name, kind), runs in index.items():
        if name not in sizes:
            raise Damaged(f"{runs[0].file} holds {name}, which is no parameter")
        runs.sort()
        at, size = 0, sizes[name]
        for run in [*runs, Run(size, size, "the end")]:
            if run.start != at:
                wrong = "no file holds" if run.start > at else "two files hold"
                raise Damaged(f"{wrong} {kind} of {name} from element {min(at, run.start)} to {max(at, run.start)}")
            at = run.stop
    return index


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's bytes, with its checksum."""
    return (json.dumps({**manifest, "sha256": _digest(manifest)}, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        Damaged: it is missing or does not match its own checksum.
        NewerFormat: it is intact, and of a later format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST} is missing") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not valid JSON") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest(manifest):
        raise Damaged(f"{MANIFEST}: its checksum differs")
    if manifest["format"] != FORMAT:
        raise NewerFormat(manifest["format"])
    return manifest
