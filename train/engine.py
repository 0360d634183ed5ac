"""The only place that trains through DeepSpeed.

Invariant: after `backward` of every micro-batch and one `step`, the update equals that of one process which averaged
over the whole global batch, under every ZeRO stage. DeepSpeed averages gradients over ranks; losses arrive scaled so
that this average is the global mean (train/gradcache.py, train/token_rows.py).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

from data_prep.errors import UserError
from train.phase import PhaseConfig

if TYPE_CHECKING:
    import torch

    from train.history.pieces import Piece
    from train.zero_state import Read

CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"


def start_ranks(store: Path | None = None, *, within_s: float = 1800.0) -> tuple[int, int]:
    """Join the process group from the launcher's environment. Returns (rank, ranks).

    On CPUs DeepSpeed would compile a shared-memory kernel that only inference uses (40 s, and a crash without a
    compiler), so it is declared unavailable first.

    Args:
        store: the file through which the ranks of one machine meet; None: MASTER_ADDR and MASTER_PORT.
        within_s: seconds for all ranks to come, and for every collective.
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
    if store is not None:
        from train.rendezvous import meet

        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        meet(store, rank=rank, ranks=ranks, backend=backend, device=device, within_s=within_s)
    deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=within_s))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def stop_ranks(code: int = 0) -> NoReturn:
    """Leave the group together, and end the process with this exit code; call it last.

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
    os._exit(code)


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


@dataclass(frozen=True)
class Step:
    """What became of one optimiser step.

    Attributes:
        norm: of the global gradient before clipping, the same on all ranks; inf where any gradient is not finite.
        applied: whether weights, moments and `Engine.updates` moved.
    """

    norm: float
    applied: bool


class Engine:
    """A module under DeepSpeed with AdamW. The caller sets the rate of each step (`set_rate`).

    Args:
        module: the model in fp32; its forward takes a `Packed` stream.
    """

    def __init__(self, module: torch.nn.Module, config: PhaseConfig) -> None:
        import deepspeed

        from train.admission import AskingAdamW
        from train.zero_state import ZeroState

        # what transformers loads is in evaluation mode, in which it would ignore activation checkpointing and dropout
        module.train()
        self._optimizer = AskingAdamW(
            parameter_groups(module, config.weight_decay),
            lr=config.learning_rate,
            fused=True,  # on CPUs too: 2.9 -> 1.1 ms a step at the demo's size, 28 -> 4 ms at 5 M parameters
        )
        with _decorators_that_wait():
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=self._optimizer, config=read_ds_config(config)
            )
        self._config = config
        self.device: torch.device = self._engine.device
        self.module: torch.nn.Module = self._engine.module
        self.updates = 0  # optimiser updates that were applied
        self._state = ZeroState(self._engine, self._optimizer, config.zero_stage)
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

    def step(self, admit: Callable[[float], bool] | None = None) -> Step:
        """Apply the optimiser with the rate that was set, then clear the gradients. A collective.

        Args:
            admit: asked once, on every rank, with `Step.norm` before anything is updated. Where it says no, weights,
                moments and `updates` stay bit for bit. A norm that is not finite is never applied, whatever it says:
                DeepSpeed refuses it too at the stages 1 to 3.
        """
        whole = self._whole_norm() if self._config.zero_stage == 0 else None  # DeepSpeed keeps none there
        answer: list[Step] = []

        def ask() -> Step:
            if not answer:
                norm = float(self._engine.optimizer._global_grad_norm) if whole is None else whole
                norm = norm if math.isfinite(norm) else math.inf
                admitted = admit is None or admit(norm)
                answer.append(Step(norm, admitted and math.isfinite(norm)))
            return answer[0]

        self._optimizer.allowed = lambda: ask().applied
        self._engine.step()
        done = ask()  # first asked here where DeepSpeed dropped the gradients by itself
        self.updates += done.applied
        return done

    def _whole_norm(self) -> float:
        """The norm of gradients that every rank holds whole, after their reduction."""
        import torch

        return float(torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the steps from now on."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    @property
    def rate(self) -> float:
        """The learning rate that the next step will use."""
        return float(self._optimizer.param_groups[0]["lr"])

    def pieces(self) -> list[Piece]:
        """Views of the fp32 weights and moments that this rank holds (train/zero_state.py); all of them at stage 0."""
        return self._state.pieces(self.updates)

    def own_pieces(self) -> list[Piece]:
        """Views of what this rank must save, so that all ranks together save every element once, evenly."""
        return self._state.own_pieces(self.updates)

    def restore(self, read: Read, *, updates: int) -> None:
        """Go on from saved pieces, of any number of ranks and any stage; also in an engine that has trained on.

        A collective, between steps. The caller sets the rate.

        Args:
            read: (name, kind, start, stop) → that flat range, 1-D. updates: `Engine.updates` when it was saved.
        """
        self._state.restore(read, updates=updates)
        self.updates = updates

    @property
    def named_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each trained parameter by name, whole under every stage."""
        return dict(self._state.shapes)

    @property
    def parameters_total(self) -> int:
        """Elements of all trained parameters, over all ranks."""
        return self._state.total

    def full_gradients(self) -> dict[str, torch.Tensor]:
        """Every parameter's gradient over the whole global batch, in fp32; call between `backward` and `step`.

        A collective: all ranks must call it.
        """
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(p).detach().float().cpu() for name, p in self.module.named_parameters()}
