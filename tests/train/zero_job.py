"""Training, refusing, saving and restoring on a rank, under every ZeRO stage, for tests/train/test_zero_state.py.

Run on each rank as `zero_job.py OUT`, by forks.py or `python -m torch.distributed.run`, where OUT is named by the number
of ranks and lies beside those of earlier starts, from which it goes on, too. OUT gets a safetensors file for each state,
and `facts.json`. The model is so odd in its sizes that partitions cut parameters everywhere; the data of a step do not
depend on the ranks.
"""

from __future__ import annotations

import gc
import math
import sys
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from zero_cases import (
    BATCH,
    CASES,
    CROSSINGS,
    HALF,
    PLANTED,
    RUN,
    STEPS,
    WORLDS,
    batch,
    loss_of,
    make_module,
    rate_of,
)  # fmt: skip

from data_prep.files import write_json
from train import engine as engine_module
from train import zero_state
from train.engine import Engine, start_ranks, stop_ranks
from train.history.pieces import Piece
from train.phase import PhaseConfig

KINDS = ("weight", "exp_avg", "exp_avg_sq")
State = dict[str, torch.Tensor]  # "name/kind" → the whole, flat


def make_engine(name: str, *, seed: int = 0) -> Engine:
    """A new engine of a case; another `seed` gives other first weights, which a restore must overwrite."""
    case = dict(CASES[name])
    zero = case.pop("zero", {})
    module = make_module(groups=case.pop("groups", 2), seed=seed)
    read = engine_module.read_ds_config

    def changed(config: PhaseConfig) -> dict[str, Any]:
        settings = read(config)
        settings["zero_optimization"] |= zero
        return settings

    with mock.patch.object(engine_module, "read_ds_config", changed):
        return Engine(module, PhaseConfig(**{"gradient_clip": 0.05, "weight_decay": 0.1, "precision": "fp32"} | case))


def backward(engine: Engine, step: int, *, poison: bool = False) -> float:
    """Two passes over this rank's rows of a step; the loss of the global batch before its update."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    ids, targets = batch(step)
    mine = list(range(rank, BATCH, ranks))
    total = torch.zeros((), dtype=torch.float64)
    with engine.accumulation():
        for part, last in ((mine[:1], False), (mine[1:], True)):
            loss = loss_of(engine, ids[part], targets[part])
            if poison and last and rank == ranks - 1:
                loss = loss * float("nan")
            engine.backward(loss * ranks, last=last)
            total += loss.detach().double()
    dist.all_reduce(total)
    return float(total)


def train(engine: Engine, steps: range, *, refuse: bool = False) -> list[list[float]]:
    """[loss, norm] of each step. With `refuse`, two steps that must leave no trace come before each of them."""
    found = []
    for step in steps:
        engine.set_rate(rate_of(step))
        if refuse:
            refused(engine, step)
        loss = backward(engine, step)
        done = engine.step()
        assert done.applied
        found.append([loss, done.norm])
    return found


def refused(engine: Engine, step: int) -> None:
    """A gradient that is not a number on one rank, and a sound one of other data that is not admitted."""
    rate, updates = engine.rate, engine.updates
    before = local(engine) if updates else None
    engine.set_rate(1.0)
    asked: list[float] = []

    def admit(norm: float, answer: bool) -> bool:
        asked.append(norm)
        return answer

    backward(engine, step + 50, poison=True)
    poisoned = engine.step(lambda norm: admit(norm, True))
    backward(engine, step + 60)
    sound = engine.step(lambda norm: admit(norm, False))
    engine.set_rate(rate)
    heard: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(heard, asked)
    assert all(h == heard[0] for h in heard), heard
    assert asked == [float("inf"), sound.norm] and 0 < sound.norm < float("inf")
    assert not poisoned.applied and not sound.applied and engine.updates == updates
    if before is not None:
        after = local(engine)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def local(engine: Engine) -> dict[tuple[str, str, int], torch.Tensor]:
    """Copies of this rank's pieces."""
    return {(p.name, kind, p.start): t.cpu().clone() for p in engine.pieces() for kind, t in p.tensors.items()}


def assembled(engine: Engine) -> State:
    """The whole state out of what each rank would save; fails unless every element is there exactly once."""
    steps = {float(state["step"]) for state in engine._optimizer.state.values()}
    assert steps == {float(engine.updates)}
    return gathered(engine) | {"updates": torch.tensor([engine.updates])}


def gathered(engine: Engine) -> State:
    mine = [Piece(p.name, p.shape, p.start, {k: t.clone() for k, t in p.tensors.items()}) for p in engine.own_pieces()]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    found = {f"{n}/{k}": torch.empty(math.prod(s)) for n, s in engine.named_shapes.items() for k in KINDS}
    times = {key: torch.zeros(len(whole), dtype=torch.int64) for key, whole in found.items()}
    for piece in (p for part in parts for p in part):
        assert piece.shape == engine.named_shapes[piece.name]
        for kind, tensor in piece.tensors.items():
            assert tensor.dtype == torch.float32 and tensor.ndim == 1
            span = slice(piece.start, piece.start + len(tensor))
            found[f"{piece.name}/{kind}"][span] = tensor
            times[f"{piece.name}/{kind}"][span] += 1
    assert all(bool((t == 1).all()) for t in times.values())
    counts = [sum(p.tensors["weight"].numel() for p in part) for part in parts]
    assert sum(counts) == engine.parameters_total
    if engine._config.zero_stage == 0:
        assert max(counts) - min(counts) <= 1
        assert sum(p.tensors["weight"].numel() for p in engine.pieces()) == engine.parameters_total
    return found


def views_only(engine: Engine) -> bool:
    """Whether all pieces lie in memory that the optimiser itself updates."""
    states = engine._optimizer.state
    owned = {t.untyped_storage().data_ptr() for flat, s in states.items() for t in (flat, *(s[k] for k in KINDS[1:]))}
    return all(t.untyped_storage().data_ptr() in owned for p in engine.pieces() for t in p.tensors.values())


class Reader:
    """Reads a state by name and range, and counts how many of its answers are alive at once."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._given: list[weakref.ref[torch.Tensor]] = []
        self.most_alive = 0

    def __call__(self, name: str, kind: str, start: int, stop: int) -> torch.Tensor:
        answer = self._state[f"{name}/{kind}"][start:stop].clone()
        self._given = [ref for ref in self._given if ref() is not None] + [weakref.ref(answer)]
        self.most_alive = max(self.most_alive, len(self._given))
        return answer


def close(engine: Engine) -> None:
    """Let go of hooks and buffers: another engine follows in this process."""
    engine._engine.destroy()
    gc.collect()


class Out:
    """What rank 0 writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}

    def keep(self, name: str, state: State) -> None:
        if dist.get_rank() == 0:
            save_file(state, self.folder / f"{name}.safetensors")


def run_case(name: str, out: Out) -> tuple[State, dict[str, Any]]:
    """Uninterrupted, rewound, restored into a new engine, and with refused steps between. Returns the middle."""
    facts: dict[str, Any] = {}
    engine = make_engine(name)
    facts["first"] = train(engine, HALF)
    middle = assembled(engine)
    facts["views"] = views_only(engine)
    facts["straight"] = train(engine, STEPS)
    out.keep(f"{name}.middle", middle)
    out.keep(f"{name}.straight", assembled(engine))
    with torch.no_grad():  # a validation, which under stage 3 leaves weights gathered
        loss_of(engine, *batch(99))
    with mock.patch.object(zero_state, "_AT_ONCE", 16):  # in several parts, as large parameters are
        engine.restore(Reader(middle), updates=len(HALF))
    out.keep(f"{name}.rewound-middle", assembled(engine))
    facts["rewound"] = train(engine, STEPS)
    out.keep(f"{name}.rewound", assembled(engine))
    close(engine)
    facts["fresh"] = restored(name, middle, out, f"{name}.fresh", facts)
    engine = make_engine(name)
    facts["refused"] = train(engine, range(HALF.start, STEPS.stop), refuse=True)[len(HALF) :]
    out.keep(f"{name}.refused", assembled(engine))
    close(engine)
    return middle, facts


def restored(
    name: str, state: State, out: Out, kept: str, facts: dict[str, Any] | None = None, *, updates: int = len(HALF)
) -> list[list[float]]:
    """Go on from a state in a new engine that began with other weights."""
    engine = make_engine(name, seed=1)
    reader = Reader(state)
    engine.restore(reader, updates=updates)
    out.keep(f"{kept}-middle", assembled(engine))
    if facts is not None:
        facts["most_alive"] = reader.most_alive
    found = train(engine, STEPS)
    out.keep(kept, assembled(engine))
    close(engine)
    return found


def planted(name: str, mistake: str, middle: State, out: Out) -> list[list[float]]:
    """Go on after a restore with a mistake in it."""
    state, updates = dict(middle), len(HALF)
    patch: Any = mock.patch.object(zero_state, "_MOMENTS", zero_state._MOMENTS)
    if mistake == "no second moment":
        state |= {key: torch.zeros_like(t) for key, t in state.items() if key.endswith("/exp_avg_sq")}
    elif mistake == "one update more":
        updates += 1
    elif mistake == "shifted by one":
        state |= {key: t.roll(1) for key, t in state.items() if key.endswith("/exp_avg")}
    elif mistake == "stale working weights":
        patch = mock.patch.object(zero_state.ZeroState, "_refresh", lambda self: None)
    elif mistake == "one count for all":
        shared: list[torch.Tensor] = []

        def one(updates: int, flat: torch.Tensor) -> torch.Tensor:
            shared[:] = shared or [torch.tensor(float(updates))]
            return shared[0]

        patch = mock.patch.object(zero_state, "_steps", one)
    else:
        raise ValueError(mistake)
    engine = make_engine(name, seed=1)
    with patch:
        engine.restore(Reader(state), updates=updates)
    found = train(engine, STEPS)
    out.keep(f"{name}.planted-{mistake}", gathered(engine))
    close(engine)
    return found


def main(folder: Path) -> None:
    start_ranks()
    gc.freeze()  # DeepSpeed collects garbage for each engine, which took 2/3 of the time with all of torch to look at
    ranks = dist.get_world_size()
    out = Out(folder)
    middles: dict[str, State] = {}
    for name in RUN[ranks]:
        print("running", name, flush=True)
        middles[name], out.facts[name] = run_case(name, out)
    for world in WORLDS:
        for source, name in CROSSINGS.get((world, ranks), ()):
            key = f"{source} of {world} to {name}"
            print("running", key, flush=True)
            state = load_file(folder.parent / str(world) / f"{source}.middle.safetensors")
            out.facts[key] = restored(name, state, out, key)
    for name, mistake in PLANTED if ranks == 2 else ():
        out.facts[f"{name} {mistake}"] = planted(name, mistake, middles[name], out)
    if dist.get_rank() == 0:
        write_json(out.folder / "facts.json", out.facts)
    stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
