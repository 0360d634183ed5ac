"""A run folder with an exported model: real safetensors and real file names, tiny, without a model behind it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from data_prep.files import write_json


def write_model(folder: Path, *, seed: int = 0) -> Path:
    """An exported folder: two files are large enough for the hub's store, the others are kept in its git."""
    rng = np.random.default_rng(seed)
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "2_Normalize").mkdir()
    save_file({"embed_tokens.weight": rng.normal(size=(600, 8)).astype("float32")}, folder / "model.safetensors")
    write_json(
        folder / "config.json",
        {"architectures": ["LlamaModel"], "hidden_size": 8, "num_hidden_layers": 2, "model_type": "llama"},
    )
    write_json(folder / "tokenizer.json", {"vocab": {f"kata{i}": i for i in range(600)}})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 64})
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True})
    write_json(folder / "2_Normalize" / "config.json", {})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "soalan: ", "document": ""}})
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    return folder


def write_run(run: Path, *, seed: int = 0, base: dict[str, Any] | None = None) -> Path:
    """A finished run around such a model; `base` is its base.json, else the base was made from a seed."""
    model = write_model(run / "export" / "model", seed=seed)
    write_json(
        run / "export" / "parity.json",
        {"max_abs_difference": 1.5e-7, "texts": 72, "dimension": 8, "tolerance": 1e-5},
    )
    files = {
        f"model/{p.relative_to(model).as_posix()}": {"sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in model.rglob("*")
        if p.is_file()
    }
    write_stage(run, "export", files=files, inputs={"finetune": "f" * 64})
    write_stage(run, "finetune", content="f" * 64, config={"finetune": {"matryoshka": [4]}}, inputs={"mine": "m" * 64})
    write_stage(run, "mine", content="m" * 64, counts={"pairs": 321}, config={"mine": {"teacher": {"kind": "tfidf"}}})
    write_stage(run, "eval", inputs={"finetune": "f" * 64})
    write_stage(run, "corpus", counts={"read": 1234, "kept": 1001, "evaluation_overlap": 7})
    write_stage(run, "truncate", counts={"base_layers": 8, "layers": 2})
    write_stage(run, "gate")
    (run / "base").mkdir()
    write_json(run / "base" / ("config.json" if base is None else "base.json"), base or {})
    write_json(
        run / "corpus" / "report.json",
        {
            "languages": [{"language": code, "kept": kept} for code, kept in (("en", 1), ("ms", 990), ("xx", 10))],
            "sources": [{"source": "forum_bcari", "language": "ms", "kept": 1001}],
        },
    )
    sets = {"evaluation_sets": ["news"], "evaluation_texts": 180, "overlapping": 0}
    write_json(run / "gate" / "proof.json", {"checked": {"corpus": 1001}, **sets})
    write_json(
        run / "finetune" / "summary.json",
        {
            "steps": 40, "tokens": 99_000, "world_size": 4, "device": "cuda", "train_s": 1800.0, "precision": "bf16",
            "parameters": 4800, "blend": [{"source": "mine", "rows": 321, "rows_per_epoch": 96}],
        },
    )  # fmt: skip
    cells = {"recall@1": 0.25, "recall@10": 0.5, "ndcg@10": 0.4, "mrr@10": 0.3}
    rows = [
        {
            "system": system, "set": "news", "subset": "all", "queries": 60,
            "metrics": {m: {"mean": v + more, "low": v + more - 0.1, "high": v + more + 0.1} for m, v in cells.items()},
        }
        for system, more in (("bm25", 0.0), ("finetuned", 0.125))
    ]  # fmt: skip
    write_json(
        run / "eval" / "results.json",
        {
            "systems": [{"name": "bm25", "kind": "bm25"}, {"name": "finetuned", "kind": "finetuned"}],
            "sets": [{"name": "news", "documents": 120, "queries": 60}],
            "rows": rows, "means": [row | {"sets": 1} for row in rows], "bootstrap": {"samples": 500},
        },
    )  # fmt: skip
    (run / "recipe.toml").write_text('name = "demo"  # a name\n\n[eval]\nsets = ["{data}/eval_dev/*"]  # sets\n')
    return run


def write_stage(run: Path, name: str, **record: Any) -> None:
    """A stage's record."""
    (run / name).mkdir(parents=True, exist_ok=True)
    empty = {"counts": {}, "config": {}, "inputs": {}, "files": {}, "content": name[0] * 64}
    write_json(run / name / "stage.json", empty | {"rumpun": "0.1.0", "commit": "c" * 40} | record)
