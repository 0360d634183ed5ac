"""Small facts that all ranks must know alike: what one found out, what one failed at.

Every function is a collective. Values travel through the process group between the ranks of one run, never through a
file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from data_prep.errors import UserError
from train.gather import world
from train.history.fence import Superseded

T = TypeVar("T")


def exchange(value: Any) -> list[Any]:
    """The small JSON values of all ranks, by rank."""
    import torch.distributed as dist

    _, ranks = world()
    if ranks == 1:
        return [value]
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, value)
    return found


def raise_together(error: UserError | Superseded | None) -> None:
    """Raise on every rank what any rank found; the lowest rank's where several did."""
    told: tuple[str, ...] | None = None
    if error is not None:
        told = (error.value, error.rule, error.fix) if isinstance(error, UserError) else (str(error),)
    for found in exchange(told):
        if found is not None:
            raise Superseded(*found) if len(found) == 1 else UserError(*found)


def on_first_rank(work: Callable[[], T]) -> T:
    """Rank 0's result of `work` (a small JSON value), or its `UserError` or `Superseded`, on every rank."""
    rank, _ = world()
    result: T | None = None
    error: UserError | Superseded | None = None
    if rank == 0:
        try:
            result = work()
        except (UserError, Superseded) as mistake:
            error = mistake
    raise_together(error)
    shared: T = exchange(result)[0]
    return shared


def together(work: Callable[[], T]) -> T:
    """This rank's result of `work`; a `UserError` or `Superseded` of any rank is raised on all."""
    result: T | None = None
    error: UserError | Superseded | None = None
    try:
        result = work()
    except (UserError, Superseded) as mistake:
        error = mistake
    raise_together(error)
    return result  # type: ignore[return-value]
