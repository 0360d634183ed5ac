"""A cut keeps what it keeps, bit for bit, and loads in plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.files import write_json
from data_prep.progress import Progress
from train.backbone import BaseConfig, TruncateConfig, cut_config, disk_bytes, make_base, truncate


def test_a_cut_equals_the_first_layers_of_the_base(world_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world_folder / "base")
    cut = AutoModelForCausalLM.from_pretrained(world_folder / "model")
    assert (base.config.num_hidden_layers, cut.config.num_hidden_layers) == (3, 2)
    kept = dict(base.named_parameters())
    for name, parameter in cut.named_parameters():
        assert torch.equal(parameter, kept[name]), name
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        states = base(input_ids=ids, output_hidden_states=True).hidden_states[2]
        assert torch.allclose(base.model.norm(states), cut.model(input_ids=ids).last_hidden_state, atol=1e-6)


def test_more_layers_than_the_base_are_refused(world_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"truncate\.layers = 9: the base has only 3 layers\. Fix: set truncate\.layers to 3"
    ):
        truncate(
            TruncateConfig(layers=9), base=world_folder / "base", tokenizer=world_folder / "tokenizer", out=tmp_path,
            precision="fp32", progress=Progress(),
        )  # fmt: skip


def test_a_named_base_goes_through_the_same_code(world_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "cut").mkdir()
    make_base(
        BaseConfig(model=str(world_folder / "base")),
        vocabulary=None,
        out=tmp_path / "named",
        seed=0,
        progress=Progress(),
    )
    counts = truncate(
        TruncateConfig(layers=1), base=tmp_path / "named", tokenizer=world_folder / "tokenizer", out=tmp_path / "cut",
        precision="fp32", progress=Progress(),
    )  # fmt: skip
    assert (counts["base_layers"], counts["layers"]) == (3, 1)
    assert (tmp_path / "cut" / "model" / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_base_that_is_no_model_is_refused(kind: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if kind == "empty":
        model.mkdir()
    write_json(tmp_path / "base.json", {"model": str(model), "revision": None})
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"base\.model = .*config\.json"):
        truncate(
            TruncateConfig(layers=1), base=tmp_path, tokenizer=tmp_path, out=tmp_path / "out", precision="fp32",
            progress=Progress(),
        )  # fmt: skip


def test_layer_lists_of_other_architectures_are_cut_too() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(num_hidden_layers=6, use_sliding_window=False)
    assert len(config.layer_types) == 6
    assert len(cut_config(config, 2).layer_types) == 2


def test_the_papers_sizes_are_counted_exactly() -> None:
    from transformers import LlamaConfig

    from launch.needs import KNOWN_BASES

    seven = LlamaConfig(**KNOWN_BASES["meta-llama/Llama-2-7b-hf"], tie_word_embeddings=False)
    thirteen = LlamaConfig(**KNOWN_BASES["meta-llama/Llama-2-13b-hf"], tie_word_embeddings=False)
    # parameters of the published causal models: first 2 and 4 layers of 7B, first 5 of 13B
    assert disk_bytes(seven, layers=2, bytes_per_parameter=4)[0] == 666_914_816
    assert disk_bytes(seven, layers=4, bytes_per_parameter=4)[0] == 1_071_681_536
    assert disk_bytes(thirteen, layers=5, bytes_per_parameter=4)[0] == 1_913_707_520
