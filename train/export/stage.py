"""The published form of a finetuned model, and the check without which it does not count."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import write_json
from train.encoder import EncoderConfig
from train.export.from_checkpoint import checkpoint_to_model
from train.export.language_model import LOG_PROBABILITY_TOLERANCE, language_parity
from train.export.layout import name_tokenizer_for_all, write_folder
from train.export.onnx_file import check_onnx_installed, write_onnx
from train.export.parity import MIN_COSINE, PROBES, check, parity
from train.export.weights import Dtype

if TYPE_CHECKING:
    from data_prep.progress import Progress


class ExportConfig(Section):
    """[export]: writing and checking the published folder."""

    dtype: Dtype = "fp32"
    """Type of the published weights. fp32 is what was trained; bf16 and fp16 are half as large, and differ a little.
    fp16 holds nothing above 65504 and is refused where a weight is larger."""
    shard_gb: Annotated[float, Field(gt=0)] = 50.0
    """Most 10⁹ bytes in one file of weights, above which there are several; 50 is the Hub's limit and transformers'
    default. Memory does not depend on it."""
    onnx: bool = False
    """Also write `onnx/model.onnx`, in fp32, for ONNX Runtime and sentence-transformers' `backend="onnx"`. Needs
    pip install 'rumpun[onnx]'."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    """Largest difference of any component of any probe embedding (fp32) that still counts as equal."""
    min_cosine: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least cosine between a probe's published and trained vector; unset: 0.999 in bf16, 0.9999 in fp16."""
    probe_texts: Annotated[int, Field(gt=0)] = 64
    """Texts of the corpus that are compared, besides a few fixed ones in several scripts."""


def export_model(
    config: ExportConfig,
    *,
    model: Path,
    texts: Sequence[str],
    out: Path,
    progress: Progress,
    matryoshka: Sequence[int] = (),
) -> dict[str, int | float]:
    """Write `out/model` and `out/parity.json`. Raises `UserError` where the reloaded model differs.

    Args:
        model: as finetuning wrote it. texts: probes, besides the fixed ones. out: an empty folder.
        matryoshka: shorter prefixes that were trained too (`finetune.matryoshka`).
    """
    if config.onnx:
        check_onnx_installed()
    with progress.work("prepare"):
        write_folder(model, out / "model", dtype=config.dtype, shard_gb=config.shard_gb, matryoshka=matryoshka)
        if config.onnx:
            write_onnx(out / "model")
    probes = [*PROBES, *texts[: config.probe_texts]]
    with progress.work("encode"):
        found = parity(model, out / "model", probes)
    _judge(found, config, out, tolerance=config.tolerance)
    return {
        "probe_texts": found["texts"],
        "dimension": found["dimension"],
        "max_abs_difference": found["max_abs_difference"],
    }


def _judge(found: dict[str, Any], config: ExportConfig, out: Path, *, tolerance: float) -> None:
    """Write down what was found, then refuse what is too much."""
    least = config.min_cosine if config.min_cosine is not None else MIN_COSINE.get(config.dtype)
    record = found | {"dtype": config.dtype, "tolerance": tolerance, "min_cosine": least}
    write_json(out / "parity.json", record)
    check(found, dtype=config.dtype, tolerance=tolerance, min_cosine=least)


def export_checkpoint(
    config: ExportConfig,
    *,
    checkpoint: Path,
    base: Path,
    encoder: EncoderConfig | None,
    texts: Sequence[str],
    out: Path,
    progress: Progress,
    matryoshka: Sequence[int] = (),
) -> dict[str, int | float]:
    """Write `out/model` and `out/parity.json` from a checkpoint of any ranks and ZeRO stage.

    The weights go to `out` twice, once as they were trained (fp32) and once as they are published; writing holds some
    tens of MB whatever the size, checking loads both models.

    Args:
        checkpoint: `step-N` of a history. base: the model folder that its phase began with. out: an empty folder.
        encoder: of a finetuning phase, which gives a sentence-transformers folder; None for pretraining, which gives a
            causal language model.

    Raises:
        UserError: the checkpoint is damaged or of another model, a value does not fit, the disk refuses, or the
            reloaded model differs.
    """
    if config.onnx and encoder is None:
        raise UserError("export.onnx = true", "is for embedding models, and this is a language model", "leave it out")
    trained = out / ".trained"
    trained.mkdir(parents=True)
    with progress.work("prepare"):
        written = checkpoint_to_model(checkpoint, base, trained, encoder=encoder)
    if encoder is not None:
        counts = export_model(
            config, model=trained, texts=texts, out=out, progress=progress, matryoshka=matryoshka
        )  # fmt: skip
    else:
        with progress.work("prepare"):
            (out / "model").mkdir()
            checkpoint_to_model(
                checkpoint, base, out / "model", dtype=config.dtype, shard_gb=config.shard_gb, verify=False
            )  # fmt: skip
            name_tokenizer_for_all(out / "model")
        with progress.work("encode"):
            found = language_parity(trained, out / "model", [*PROBES, *texts[: config.probe_texts]])
        _judge(found, config, out, tolerance=LOG_PROBABILITY_TOLERANCE)
        counts = {"probe_texts": found["texts"], "max_abs_difference": found["max_abs_difference"]}
    shutil.rmtree(trained)
    return {"step": written["step"], "ranks": written["ranks"], "parameters": written["parameters"], **counts}
