"""The only place that trains through DeepSpeed.

Invariant: after `backward` of every micro-batch and one `step`, the update equals that of one process which averaged
over the whole global batch, under every ZeRO stage. DeepSpeed averages gradients over ranks; losses arrive scaled so
that this average is the global mean (train/gradcache.py, train/token_rows.py).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

from data_prep.errors import UserError
from train.phase import PhaseConfig, rate_factor

if TYPE_CHECKING:
    import torch

CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"


def start_ranks() -> tuple[int, int]:
    """Join the process group from the launcher's environment. Returns (rank, ranks).

    On CPUs DeepSpeed would compile a shared-memory kernel that only inference uses (40 s, and a crash without a
    compiler), so it is declared unavailable first.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.init_distributed(verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def stop_ranks() -> NoReturn:
    """Leave the group together, and end the process; call it last.

    A rank that destroys the group early aborts the others, hence the barrier. The process then ends without unwinding
    torch: with gloo under ZeRO-3 a rank was seen to abort there (`terminate called without an active exception`), after
    everything had been written.
    """
    import torch
    import torch.distributed as dist

    dist.barrier()
    if torch.cuda.is_available():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def read_ds_config(config: PhaseConfig) -> dict[str, Any]:
    """The DeepSpeed JSON of the phase's ZeRO stage, with the recipe's values filled in.

    Raises `UserError` where bf16 is asked of a device without it, or no file exists for the combination.
    """
    import torch

    path = CONFIGS / f"zero{config.zero_stage}{'_offload' if config.offload else ''}.json"
    if not path.exists():
        raise UserError(
            f"zero_stage = {config.zero_stage} with offload = {str(config.offload).lower()}",
            f"there is no {path.name} in ds_configs/",
            "offload works with zero_stage 2 or 3",
        )
    settings: dict[str, Any] = json.loads(path.read_text())
    settings |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # rumpun marks the last micro-batch itself, so that losses are not rescaled
        "gradient_clipping": config.gradient_clip,
        "steps_per_print": 1 << 60,
    }
    if config.precision == "bf16":
        if torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
            raise UserError("precision = 'bf16'", "this GPU has no bf16", "set precision to 'fp32'")
        settings["bf16"] = {"enabled": True}
    return settings


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices with decay; norms, biases and embeddings without."""
    import torch

    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


@contextmanager
def _decorators_that_wait() -> Iterator[None]:
    """Keep `torch.compile` from doing anything inside the block.

    DeepSpeed looks whether the optimizer is its Muon by importing it; the decorators there load all of inductor, which
    takes 1.4 s of every rank's start (DeepSpeed 0.19.8, torch 2.13) for functions that are never called.
    """
    import torch

    def leave(function: Any = None, **_: Any) -> Any:
        return (lambda inner: inner) if function is None else function

    with mock.patch.object(torch, "compile", leave):
        yield


class Engine:
    """A module under DeepSpeed with AdamW and the phase's schedule.

    Args:
        module: the model in fp32; its forward takes a `Packed` stream.
        steps: optimiser steps of the whole phase, for the schedule.
    """

    def __init__(self, module: torch.nn.Module, config: PhaseConfig, *, steps: int) -> None:
        import deepspeed
        import torch

        # what transformers loads is in evaluation mode, in which it would ignore activation checkpointing and dropout
        module.train()
        optimizer = torch.optim.AdamW(
            parameter_groups(module, config.weight_decay),
            lr=config.learning_rate,
            fused=True,  # on CPUs too: 2.9 -> 1.1 ms a step at the demo's size, 28 -> 4 ms at 5 M parameters
        )
        scheduler = lambda o: torch.optim.lr_scheduler.LambdaLR(  # noqa: E731 - DeepSpeed asks for a callable
            o, lambda step: rate_factor(config, step=step, steps=steps)
        )
        with _decorators_that_wait():
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, lr_scheduler=scheduler, config=read_ds_config(config)
            )
        self._config = config
        self.device: torch.device = self._engine.device
        self.module: torch.nn.Module = self._engine.module
        self._unsharded = config.zero_stage == 0
        self._reduces_every_pass = config.zero_stage >= 2

    def __call__(self, *args: Any) -> Any:
        """The module's forward."""
        return self._engine(*args)

    @contextmanager
    def accumulation(self) -> Iterator[None]:
        """All backward passes of one optimiser step; gradients are reduced over ranks once where that is free.

        ZeRO 0 and 1 hold whole gradients anyway and reduce them after the last pass. ZeRO 2 and 3 hold only a part, so
        they reduce in every pass; with `reduce_once` they hold the whole until the end of the block and reduce once.
        """
        if self._reduces_every_pass and self._config.reduce_once:
            with self._engine.coalesce_grad_reduction():
                yield
        else:
            yield

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch; `last` marks the one that completes the step."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        self._engine.backward(loss)

    def step(self) -> float | None:
        """Apply the optimiser and the schedule. Returns the global gradient norm before clipping, where known."""
        norm = None
        if self._unsharded and self._config.precision == "fp32":  # DeepSpeed keeps no norm for this one case
            import torch

            norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
            )
        self._engine.step()
        if norm is None:
            told = self._engine.get_global_grad_norm()
            norm = None if told is None else float(told)
        return norm

    @property
    def rate(self) -> float:
        """The learning rate that the next step will use."""
        return float(self._engine.get_lr()[0])

    def full_gradients(self) -> dict[str, torch.Tensor]:
        """Every parameter's gradient over the whole global batch, in fp32; call between `backward` and `step`.

        A collective: all ranks must call it.
        """
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(p).detach().float().cpu() for name, p in self.module.named_parameters()}
