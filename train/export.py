"""The published form: a sentence-transformers folder in safetensors that needs no code of ours.

Invariant: exported = trained. The folder is reloaded with plain sentence-transformers and compared with the training
model on a probe set before it counts; a difference above the tolerance refuses the export.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from train.encoder import PROJECTION, EncoderConfig, has_pooler, load_encoder, read_projection

if TYPE_CHECKING:
    from data_prep.progress import Progress

PROBES = (
    "Macam mana nak mohon bantuan banjir?",
    "How do I renew my road tax online?",
    "Permohonan hendaklah dikemukakan sebelum 31 Mac.",
    "今天天气很好",
    "வணக்கம், எப்படி இருக்கிறீர்கள்?",
    "best giler nasi lemak kat situ 😋",
    "1234567890 !!! ???",
    "a",
)


class ExportConfig(Section):
    """[export]: writing and checking the published folder."""

    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    """Largest difference of any component of any probe embedding (fp32) that still counts as equal."""
    probe_texts: Annotated[int, Field(gt=0)] = 64
    """Texts of the corpus that are compared, besides a few fixed ones in several scripts."""


def write_folder(model: Path, out: Path) -> None:
    """Lay out a finetuned model folder for sentence-transformers; weights are copied, not converted."""
    encoder = EncoderConfig(**read_json(model / "encoder.json"))
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(model.iterdir()):
        if file.is_file() and file.name not in ("encoder.json", PROJECTION):
            shutil.copyfile(file, out / file.name)
    shape = read_json(model / "config.json")
    if encoder.bidirectional:
        write_json(out / "config.json", shape | {"is_causal": False})
    _write_module(out, "1_Pooling", _pooling(shape["hidden_size"], encoder))
    kinds = ["Transformer", "Pooling"]
    if encoder.projection is not None:
        state = read_projection(model, encoder)
        _write_dense(out, state["weight"])
        kinds.append("Dense")
    # git and the Hub keep no empty folder, and sentence-transformers looks for this one
    _write_module(out, f"{len(kinds)}_Normalize", {})
    kinds.append("Normalize")
    write_json(
        out / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ],
    )
    bare = {"model_args": {"add_pooling_layer": False}} if has_pooler(model) else {}
    write_json(
        out / "sentence_bert_config.json", {"max_seq_length": encoder.max_tokens, "do_lower_case": False, **bare}
    )
    write_json(
        out / "config_sentence_transformers.json",
        {
            "prompts": {"query": encoder.query_prompt, "document": encoder.passage_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _write_module(out: Path, name: str, config: dict[str, Any]) -> None:
    (out / name).mkdir()
    write_json(out / name / "config.json", config)


def _pooling(width: int, encoder: EncoderConfig) -> dict[str, Any]:
    """The older spelling of sentence-transformers' pooling, which its releases 2 to 6 all read."""
    return {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": encoder.pooling == "weighted_mean",
        "pooling_mode_lasttoken": encoder.pooling == "last",
        "include_prompt": not encoder.mask_prompts,
    }


def _write_dense(out: Path, weight: Any) -> None:
    """The projection [D, H] as sentence-transformers' Dense module, without bias and activation."""
    from safetensors.torch import save_file

    _write_module(
        out,
        "2_Dense",
        {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file({"linear.weight": weight}, out / "2_Dense" / "model.safetensors")


def parity(model: Path, exported: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Compare the training model with the exported folder in plain sentence-transformers, fp32, offline.

    Returns:
        `max_abs_difference` over all components, queries and passages, with `texts` and `dimension`.
    """
    import numpy as np

    ours = load_encoder(model)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(exported), device="cpu", trust_remote_code=False, local_files_only=True)
    worst = 0.0
    for role, name in (("query", "query"), ("passage", "document")):
        a = ours.embed(texts, role=role)  # type: ignore[arg-type]
        b = theirs.encode(list(texts), prompt_name=name, batch_size=16, show_progress_bar=False)
        worst = max(worst, float(np.abs(a - b).max()))
    return {"max_abs_difference": worst, "texts": len(texts), "dimension": ours.dimension}


def export_model(
    config: ExportConfig, *, model: Path, texts: Sequence[str], out: Path, progress: Progress
) -> dict[str, int | float]:
    """Write `out/model` and `out/parity.json`. Raises `UserError` where the reloaded model differs."""
    with progress.work("prepare"):
        write_folder(model, out / "model")
    probes = [*PROBES, *texts[: config.probe_texts]]
    with progress.work("encode"):
        found = parity(model, out / "model", probes)
    write_json(out / "parity.json", found | {"tolerance": config.tolerance})
    if not found["max_abs_difference"] < config.tolerance:
        raise UserError(
            f"export: largest difference {found['max_abs_difference']:.2e}",
            f"must be below export.tolerance = {config.tolerance:.0e}, or the published model is not the trained one",
            "report this with the recipe; raise the tolerance only if you know why they differ",
        )
    return {
        "probe_texts": found["texts"],
        "dimension": found["dimension"],
        "max_abs_difference": found["max_abs_difference"],
    }
