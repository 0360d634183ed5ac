"""What a rank holds of the weights and of Adam's moments, under any ZeRO stage, as runs of named parameters.

Invariants: the pieces of all ranks cover every trained parameter exactly once (stages 1 to 3) or once on every rank
(stage 0); a piece is a view, so nothing is copied here; `restore` needs 64 MiB of memory, and afterwards the
engine goes on bit for bit as the one whose pieces are read. Weights are the fp32 master copy, also in bf16.

Where DeepSpeed 0.19 keeps them: stage 0 in the parameters themselves; stages 1 and 2 in a flat fp32 partition for each
parameter group, with the place of a parameter in `_hp_mapping`; stage 3 in a flat fp32 partition for each sub-group of
`sub_group_size` elements, with the place in `grad_position`, each parameter being cut into equal parts of which the
last are padded. Moments belong to the flat tensors. DeepSpeed links those of the first parameter group only
(`safe_get_full_optimizer_state` fails for the others), so they are found by their flat tensor here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from train.history.pieces import Piece

Read = Callable[[str, str, int, int], torch.Tensor]
"""(name, kind, start, stop) → the elements [start, stop) of a flattened parameter or of its moment, 1-D."""

_MOMENTS = ("exp_avg", "exp_avg_sq")
_AT_ONCE = 1 << 24
"""Elements that a restore reads at a time: 64 MiB, where an embedding alone may have 4 GiB."""


class _Run(NamedTuple):
    """Elements [start, start + numel) of a parameter lie at `offset` of `flat`, which is what the optimizer updates."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    flat: torch.Tensor
    offset: int


class ZeroState:
    """The weights and moments inside a DeepSpeed engine.

    Args:
        engine: DeepSpeed's, made of `optimizer`. stage: its ZeRO stage.
    """

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer, stage: int) -> None:
        self._engine, self._adam, self._stage = engine, optimizer, stage
        trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(getattr(p, "ds_shape", p.shape))  # stage 3 leaves an empty tensor in place of the parameter
            for name, p in trained
        }
        self._runs = [run for name, p in trained for run in self._runs_of(name, p)]

    def _runs_of(self, name: str, parameter: Any) -> Iterator[_Run]:
        zero, shape = self._engine.optimizer, self.shapes[name]
        if self._stage == 0:
            yield _Run(name, shape, 0, parameter.numel(), parameter, 0)
        elif self._stage < 3:
            place = parameter._hp_mapping
            if place is not None:  # None: nothing of this parameter is in the rank's partition
                flat = zero.single_partition_of_fp32_groups[place.param_group_index]
                inside, outside = place.lp_fragment_address, place.hp_fragment_address
                yield _Run(name, shape, inside.start, inside.numel, flat, outside.start)
        else:
            group, offset, part = zero.grad_position[zero.get_param_id(parameter)]
            start = part * dist.get_rank(parameter.ds_process_group)
            numel = min(part, parameter.ds_numel - start)  # the last parts hold padding, or nothing else
            if numel > 0:
                yield _Run(name, shape, start, numel, zero.fp32_partitioned_groups_flat[group], offset)

    def _moments(self, flat: torch.Tensor, updates: int) -> dict[str, torch.Tensor]:
        """The optimizer's state of a flat tensor, made as AdamW would where there was no update yet."""
        state: dict[str, torch.Tensor] = self._adam.state[flat]
        if not state:
            state["step"] = _steps(updates, flat)
            for kind in _MOMENTS:
                state[kind] = torch.zeros_like(flat, memory_format=torch.preserve_format)
        return state

    def pieces(self, updates: int) -> list[Piece]:
        """Views of everything this rank holds; at stage 0 every rank holds everything."""
        return [Piece(run.name, run.shape, run.start, self._views(run, 0, run.numel, updates)) for run in self._runs]

    def own_pieces(self, updates: int) -> list[Piece]:
        """The part of `pieces` that this rank must save, so that all ranks together save each element once."""
        if self._stage:
            return self.pieces(updates)
        total, rank, ranks = sum(run.numel for run in self._runs), dist.get_rank(), dist.get_world_size()
        low, high = rank * total // ranks, (rank + 1) * total // ranks
        found, before = [], 0
        for run in self._runs:
            start, stop = max(0, low - before), min(run.numel, high - before)
            before += run.numel
            if start < stop:
                views = self._views(run, start, stop, updates)
                found.append(Piece(run.name, run.shape, run.start + start, views))
        return found

    def _views(self, run: _Run, start: int, stop: int, updates: int) -> dict[str, torch.Tensor]:
        flats = {"weight": run.flat, **{kind: self._moments(run.flat, updates)[kind] for kind in _MOMENTS}}
        first = run.offset + start
        return {kind: flat.detach().view(-1)[first : run.offset + stop] for kind, flat in flats.items()}

    @torch.no_grad()
    def restore(self, read: Read, *, updates: int) -> None:
        """Overwrite weights, moments and step counts, then refresh the working weights. A collective.

        Call it between steps: gradients are dropped. If `read` raises, the engine is left half restored.
        """
        self._engine.optimizer.zero_grad()
        for piece in self.pieces(updates):
            for kind, view in piece.tensors.items():
                for first in range(0, len(view), _AT_ONCE):
                    part, start = view[first : first + _AT_ONCE], piece.start + first
                    part.copy_(read(piece.name, kind, start, start + len(part)).view(len(part)))
        for flat in {id(run.flat): run.flat for run in self._runs}.values():
            # a tensor of its own for each: AdamW counts in place
            self._adam.state[flat]["step"] = _steps(updates, flat)
        self._refresh()

    def _refresh(self) -> None:
        """Bring the restored fp32 weights to where the next forward pass reads them, as the end of a step does."""
        zero = self._engine.optimizer
        if self._stage in (1, 2):
            zero.update_lp_params()
        elif self._stage == 3:
            zero._partition_all_parameters()
            for group in range(len(zero.fp32_partitioned_groups_flat)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            if zero.persistent_parameters:  # small ones, which stay whole on every rank between steps
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    @property
    def total(self) -> int:
        """Elements of all trained parameters, over all ranks."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def _steps(updates: int, flat: torch.Tensor) -> torch.Tensor:
    return torch.tensor(float(updates), dtype=torch.float32, device=flat.device)
