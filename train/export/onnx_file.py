"""The model of an exported folder as `onnx/model.onnx`, where sentence-transformers looks for it (`backend="onnx"`).

Token ids and mask go in, token states come out; pooling, projection and norm stay with whoever loads it. The file is in
fp32 whatever the folder is in: CPU runtimes know little of bf16.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json

if TYPE_CHECKING:
    import torch

    from train.export.plain import Forward

PLACE = Path("onnx") / "model.onnx"
_OPSET = 18
_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_MOST_INSIDE = 1_900_000_000
"""Bytes above which weights lie beside the file: a protobuf message ends at 2 GiB."""


def check_onnx_installed() -> None:
    """Raise `UserError` where a package is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            "export.onnx = true",
            f"needs the packages {', '.join(missing)}",
            "pip install 'rumpun[onnx]', or leave it out",
        )


def write_onnx(folder: Path) -> Path:
    """Write `onnx/model.onnx` into an exported folder. Returns its path.

    Batch and length are free, up to the `max_seq_length` of the folder. Loads the model in fp32.

    Raises:
        UserError: torch cannot trace this architecture; packages are missing; the disk refuses.
    """
    check_onnx_installed()
    import torch
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
    ).eval()
    cached = {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(
                input_ids=input_ids, attention_mask=attention_mask, **cached
            ).last_hidden_state
            return states

    longest = int(read_json(folder / "sentence_bert_config.json")["max_seq_length"])
    ids = torch.arange(3 * min(11, longest)).reshape(3, -1) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, -1] = 0  # the traced batch has padding, so the mask is in the graph
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=longest)}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    path = folder / PLACE
    with disk_errors(path), _quiet():
        path.parent.mkdir()
        try:
            torch.onnx.export(
                States(), (ids, mask), path, input_names=["input_ids", "attention_mask"],
                output_names=["last_hidden_state"], dynamic_shapes={"input_ids": free, "attention_mask": free},
                opset_version=_OPSET, dynamo=True, external_data=size > _MOST_INSIDE, verbose=False,
            )  # fmt: skip
        except OSError:
            raise
        except Exception as error:  # torch has as many kinds of them as there are things it cannot trace
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"export.onnx = true with {type(model).__name__}", f"torch cannot write it ({reason})",
                "set export.onnx to false; everything else is published all the same",
            ) from error  # fmt: skip
    return path


def onnx_model(folder: Path) -> Forward:
    """The forward pass of an exported folder in ONNX Runtime, on the CPU."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(folder / PLACE), providers=["CPUExecutionProvider"])

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        (states,) = session.run(["last_hidden_state"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return torch.from_numpy(states)

    return forward


@contextmanager
def _quiet() -> Iterator[None]:
    """No lines about operators of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
