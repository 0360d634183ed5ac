"""What a history is of: the settings, the data and the model that its numbers come from.

Invariant: a phase goes on with its history only where that leads to the numbers it would have reached without the stop.
Settings that change nothing but speed and memory may differ, and are told; the batch size may differ by an integer
factor, since the order of the samples does not depend on it; everything else is refused with all differences named.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json, sha256_file
from train.arrange import check_batch
from train.history.fence import Fence, sweep_beside, write_json_fenced

FORMAT = 1
FILE = "identity.json"
_START_OVER = "--fresh keeps this history aside and starts the phase over"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One phase of now.

    Attributes:
        config: the phase's settings by dotted key, as JSON values.
        harmless: keys that change no number. batch: the key of the batch size.
        data: fingerprint of each source. model: content hash of the model that training starts from.
        sizes: its parameter counts and shape, for people.
    """

    phase: str
    seed: int
    config: Mapping[str, Any]
    harmless: frozenset[str]
    batch: str
    data: Mapping[str, str]
    model: str
    sizes: Mapping[str, int]

    def record(self) -> dict[str, Any]:
        """A new history's identity.json; the batch size of its first start fixes the order for good."""
        return {
            "format": FORMAT,
            "history": uuid.uuid4().hex,
            "phase": self.phase,
            "seed": self.seed,
            "order_batch": self.config[self.batch],
            "config": dict(self.config),
            "data": dict(self.data),
            "model": self.model,
            "sizes": dict(self.sizes),
        }


def enter(folder: Path, now: Identity, fence: Fence | None = None) -> tuple[dict[str, Any], list[str]]:
    """The identity of the history in `folder`, made where there is none, and notes on harmless differences.

    Raises `UserError` where the history is of something else, or was written by a newer rumpun; `Superseded` where a
    newer start has it.
    """
    path = folder / FILE
    if fence is not None:
        sweep_beside(folder, fence)
    if not path.exists():
        left = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        if "ledger.jsonl" in left or "checkpoints" in left:
            raise UserError(
                str(path), f"is missing, but the history beside it is not ({', '.join(left)})",
                f"put the file back; or {_START_OVER}",
            )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        record = now.record()
        write_json_fenced(path, record, fence)
        return record, []
    record = read_json(path)
    missing = now.record().keys() - record.keys() if isinstance(record, dict) else {"everything"}
    if missing and not (isinstance(record, dict) and _is_newer(record)):
        raise UserError(
            str(path), f"is not what a history begins with (without {', '.join(sorted(missing))})",
            f"put the file back from a copy; or {_START_OVER}",
        )  # fmt: skip
    return record, compare(record, now, where=folder)


def _is_newer(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("format"), int) and record["format"] > FORMAT


def compare(record: Mapping[str, Any], now: Identity, *, where: Path) -> list[str]:
    """Notes on harmless differences between a history and now. Raises `UserError` for any other."""
    name = f"history {where}"
    if _is_newer(record):
        raise UserError(
            name, f"was written by a newer rumpun (format {record['format']}, this one reads {FORMAT})",
            f"use that version; or {_START_OVER}",
        )  # fmt: skip
    for source in sorted({*record["data"], *now.data}):
        old, new = record["data"].get(source, "none"), now.data.get(source, "none")
        if old != new:
            raise UserError(
                f"{now.phase}: data {source!r} has fingerprint {new[:16]}", f"the history was trained on {old[:16]}",
                f"bring the former data back (its stages are up to date again then); or {_START_OVER}",
            )  # fmt: skip
    if record["model"] != now.model:
        raise UserError(
            f"{now.phase}: the model to start from ({_sized(now.sizes)})",
            f"is not the one of the history ({_sized(record['sizes'])})",
            f"bring the former model back; or {_START_OVER}",
        )
    differences = list(_differences({**record["config"], "seed": record["seed"]}, {**now.config, "seed": now.seed}))
    serious = [d for d in differences if d.key not in now.harmless and not _may_change(d, record, now)]
    light = [d for d in differences if d not in serious]
    if serious:
        also = f"; harmless: {', '.join(map(str, light))}" if light else ""
        raise UserError(
            f"{now.phase}: {', '.join(map(str, serious))}",
            f"differs from the settings that its history was trained with{also}",
            f"set it back; or {_START_OVER}",
        )
    return [f"{d}: {_why_harmless(d, now)}" for d in light]


@dataclass(frozen=True)
class _Difference:
    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {json.dumps(self.old)} -> {json.dumps(self.new)}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[_Difference]:
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield _Difference(key, old.get(key), new.get(key))


def _may_change(difference: _Difference, record: Mapping[str, Any], now: Identity) -> bool:
    """Whether this is a batch size that fits the order; raises `UserError` for one that does not."""
    if difference.key != now.batch:
        return False
    check_batch(int(difference.new), int(record["order_batch"]), name=now.batch)
    return True


def _why_harmless(difference: _Difference, now: Identity) -> str:
    if difference.key == now.batch:
        return "the same samples in the same order, and the rate goes by samples"
    return "changes nothing in the result"


def _sized(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in sorted(sizes.items()))


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one table by dotted key."""
    return {f"{prefix}.{key}": value for key, value in values.items()}


def folder_fingerprint(model: Path) -> str:
    """A content hash of a model folder's weights and config."""
    files = sorted(p for p in model.iterdir() if p.suffix == ".safetensors" or p.name == "config.json")
    return hashlib.sha256("".join(f"{p.name}:{sha256_file(p)};" for p in files).encode()).hexdigest()
