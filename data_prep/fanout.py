"""Independent parts of one stage, computed here, in processes beside, or on other machines.

A part is a function named by a string (`package.module:function`) and JSON arguments; it writes files of its own and
returns JSON values. Invariant: a part that has ended is never computed again: its result lies in the scratch folder
under the digest of what it was asked. So a killed stage goes on where it was, whoever computes the rest.

How the parts reach processes or a cluster is the launcher's matter (launch/fanout.py); `Serial` computes them here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.progress import Progress

Part = Mapping[str, Any]
Result = dict[str, Any]


class Fanout(Protocol):
    """Whoever computes parts.

    Attributes:
        workers: how many parts may be computed at once; a stage cuts its work into a few times as many.
    """

    workers: int

    def map(
        self, function: str, parts: Sequence[Part], *, scratch: Path, label: str, progress: Progress
    ) -> list[Result]:
        """The results of all parts, in their order.

        Args:
            function: `package.module:function`; called with the part's entries as keyword arguments.
            parts: JSON values each; paths are absolute strings.
            scratch: a folder that outlives a crash; results go to `scratch/LABEL/`.
            label: names the work in the progress display and the folder; plain letters and digits.

        Raises:
            UserError: the first one that a part raised. RuntimeError: a part failed otherwise; holds its traceback.
        """
        ...


def record_of(function: str, part: Part, *, scratch: Path, label: str) -> Path:
    """Where the result of a part lies once it has ended."""
    asked = json.dumps([function, part], sort_keys=True, ensure_ascii=False)
    return scratch / label / f"{hashlib.blake2b(asked.encode(), digest_size=12).hexdigest()}.json"


def finished(record: Path) -> Result | None:
    """The result of a part that ended well, None where there is none yet."""
    if not record.exists():
        return None
    told: dict[str, Any] = read_json(record)
    return told.get("result")


def run_part(function: str, part: Part, record: Path) -> None:
    """Compute one part and record its result, or how it failed. Never raises for a failure of the part.

    Raises:
        UserError: the record itself cannot be written (a full disk).
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    try:
        module, _, name = function.partition(":")
        told: dict[str, Any] = {"result": getattr(importlib.import_module(module), name)(**part)}
    except UserError as error:
        told = {"mistake": [error.value, error.rule, error.fix]}
    except Exception:  # a defect: whoever asked raises it again, with this traceback
        told = {"traceback": traceback.format_exc()}
    write_json(record, told)


def result_of(record: Path, *, function: str) -> Result:
    """The result in a record; raises what its part raised, and forgets a failure so that the next run tries again.

    Raises:
        UserError: the part's own. RuntimeError: the part failed otherwise, or left no record (its process died).
    """
    if not record.exists():
        raise RuntimeError(f"{function}: its process died without a word (out of memory, or killed)")
    told: dict[str, Any] = read_json(record)
    if "result" in told:
        result: Result = told["result"]
        return result
    record.unlink()
    if "mistake" in told:
        raise UserError(*told["mistake"])
    raise RuntimeError(f"{function} failed:\n{told['traceback']}")


class Serial:
    """Computes the parts one after another in this process."""

    workers = 1

    def map(
        self, function: str, parts: Sequence[Part], *, scratch: Path, label: str, progress: Progress
    ) -> list[Result]:
        """See `Fanout.map`."""
        results = []
        progress.begin(label, len(parts), "parts")
        for part in parts:
            record = record_of(function, part, scratch=scratch, label=label)
            if finished(record) is None:
                run_part(function, part, record)
            results.append(result_of(record, function=function))
            progress.advance(1)
        return results
