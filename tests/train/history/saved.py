"""Training state that is a function of (step, version), saved by ranks that are threads, and compared bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from train.history.checkpoint import Checkpoint, Found, find
from train.history.pieces import Piece
from train.history.saver import Saver

T = TypeVar("T")
KINDS = ("weight", "exp_avg", "exp_avg_sq")
SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (11, 8),
    "layers.0.w": (8, 8),
    "norm": (8,),
    "scale": (),
    "no": (0, 8),
}


def alone(value: Any) -> list[Any]:
    """The exchange of a single rank."""
    return [value]


def on_all(ranks: int, work: Callable[[int, Callable[[Any], list[Any]]], T]) -> list[T]:
    """What `work(rank, exchange)` gives on each rank, or raises on the lowest that raises."""
    board: list[Any] = [None] * ranks
    barrier = threading.Barrier(ranks, timeout=30)
    results: list[Any] = [None] * ranks
    errors: list[BaseException | None] = [None] * ranks

    def run(rank: int) -> None:
        def exchange(value: Any) -> list[Any]:
            board[rank] = value
            barrier.wait()
            told = list(board)
            barrier.wait()
            return told

        try:
            results[rank] = work(rank, exchange)
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results


def state(
    step: int, version: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> dict[tuple[str, str], torch.Tensor]:
    """Flat tensors by (name, kind); every element differs from step to step and from version to version."""
    draw = torch.Generator().manual_seed(1000 * step + version)
    return {
        (name, kind): torch.randn(shape, generator=draw).flatten() for name, shape in shapes.items() for kind in KINDS
    }


def split(
    full: dict[tuple[str, str], torch.Tensor], ranks: int, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> list[list[Piece]]:
    """As ZeRO 1 and 2 cut it: all parameters behind one another, an equal part for each rank."""
    total = sum(full[name, "weight"].numel() for name in shapes)
    each = -(-total // ranks)
    found: list[list[Piece]] = []
    for rank in range(ranks):
        pieces, at = [], 0
        for name, shape in shapes.items():
            size = full[name, "weight"].numel()
            low, high = max(0, rank * each - at), min(size, (rank + 1) * each - at)
            if low < high or (size == 0 and rank == 0):
                pieces.append(Piece(name, shape, low, {kind: full[name, kind][low:high] for kind in KINDS}))
            at += size
        found.append(pieces)
    return found


def savers(folder: Path, ranks: int, **options: Any) -> list[Saver]:
    return [Saver(folder, rank=rank, ranks=ranks, **options) for rank in range(ranks)]


def save(made: list[Saver], step: int, version: int = 0) -> list[Any]:
    """Save `state(step, version)` on all ranks; the failures, by rank."""
    ranks = len(made)
    parts = split(state(step, version), ranks)
    for rank in reversed(range(ranks)):  # rank 0 waits for the others: where nothing runs in the background it is last
        own = {"rng": torch.full((5,), 10 * step + rank, dtype=torch.int64)}
        made[rank].save(step, parts[rank], {"version": version, "step": step}, own)
    for saver in made:
        saver.wait()
    return [saver.failure() for saver in made]


def saved(folder: Path, *steps: int, ranks: int = 2, keep: int = 9) -> None:
    """A folder with good checkpoints."""
    made = savers(folder, ranks, keep=keep)
    for step in steps:
        assert save(made, step) == [None] * ranks


def assert_whole(checkpoint: Checkpoint) -> None:
    """Every bit is of the state that the checkpoint claims to hold."""
    expected = state(checkpoint.step, checkpoint.facts["version"])
    assert checkpoint.facts["step"] == checkpoint.step
    assert checkpoint.parameters == SHAPES
    for (name, kind), tensor in expected.items():
        assert torch.equal(checkpoint.read(name, kind, 0, tensor.numel()), tensor), (name, kind)
    for rank in range(checkpoint.ranks):
        assert checkpoint.own(rank)["rng"].tolist() == [10 * checkpoint.step + rank] * 5
    assert checkpoint.own(checkpoint.ranks) == {}


def look(folder: Path, ranks: int = 1, expected: int | None = None) -> Found:
    """`find` on so many ranks, which must agree."""
    found = on_all(ranks, lambda rank, ex: find(folder, rank=rank, ranks=ranks, exchange=ex, expected=expected))
    assert len({(f.checkpoint and f.checkpoint.step, *f.notes) for f in found}) == 1
    return found[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
