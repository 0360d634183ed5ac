"""A cut keeps what it keeps, bit for bit, equals the base with the other layers skipped, and loads in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.progress import Progress
from train.truncate import TruncateConfig, cut_config, disk_bytes, kept_layers, truncate

LAYERS = 6
SHAPE: dict[str, Any] = {
    "vocab_size": 400,  # more rows than the tokenizer has tokens
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}
ROWS, LENGTH = 3, 20  # longer than every window


def configs() -> dict[str, Any]:
    from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    return {
        "llama": LlamaConfig(**SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=False),
        "llama-linear": LlamaConfig(
            **SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, tie_word_embeddings=True
        ),
        "mistral": MistralConfig(**SHAPE, sliding_window=4),
        "qwen2": Qwen2Config(**SHAPE, **SLIDING, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**SHAPE, **SLIDING, rope_parameters=YARN, head_dim=16, tie_word_embeddings=True),
        "gemma3": Gemma3TextConfig(
            **SHAPE, head_dim=8, sliding_window=4, query_pre_attn_scalar=8,
            layer_types=[*["sliding_attention", "full_attention"] * 3],
        ),
        "gpt2": GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=LAYERS, n_head=4),
    }  # fmt: skip


NAMES = ["llama", "llama-linear", "mistral", "qwen2", "qwen3", "gemma3", "gpt2"]


@pytest.fixture(scope="module", params=NAMES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with random weights, far from its initial near-identity, so that skipping a layer shows."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(configs()[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    folder = tmp_path_factory.mktemp("bases") / request.param
    model.save_pretrained(folder, max_shard_size="12KB")
    return folder


def cut(base: Path, layers: int | list[int], tokenizer: Path, out: Path, precision: Any = "fp32") -> dict[str, Any]:
    named = out / "named"
    named.mkdir(parents=True)
    write_json(named / "base.json", {"model": str(base), "revision": None})
    config = TruncateConfig(layers=layers)
    return dict(truncate(config, base=named, tokenizer=tokenizer, out=out, precision=precision, progress=Progress()))


def states(folder: Path, *, skipped: set[int] = frozenset()) -> Any:  # type: ignore[assignment]
    """Final states [rows, length, H] in float64 of plain transformers; skipped layers hand on what they were given."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for number in skipped:
        stack[number].register_forward_hook(
            lambda module, given, named, output: given[0] if given else named["hidden_states"], with_kwargs=True
        )
    ids = torch.randint(3, 300, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("layers", [2, 5, [0, 2, 5], [1, 3, 4]], ids=str)
def test_a_cut_equals_the_base_without_the_other_layers(
    base: Path, layers: int | list[int], world_folder: Path, tmp_path: Path
) -> None:
    import torch

    kept = list(range(layers)) if isinstance(layers, int) else layers
    counts = cut(base, layers, world_folder / "tokenizer", tmp_path)
    assert (counts["base_layers"], counts["layers"]) == (LAYERS, len(kept))
    expected = states(base, skipped=set(range(LAYERS)) - set(kept))
    assert torch.allclose(states(tmp_path / "model"), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(states(base), expected, rtol=1e-3, atol=1e-3)  # the comparison can fail


def test_every_kept_tensor_is_the_bases_own(base: Path, world_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    cut(base, [0, 3], world_folder / "tokenizer", tmp_path)
    whole, part = (AutoModelForCausalLM.from_pretrained(f) for f in (base, tmp_path / "model"))
    own = dict(whole.named_parameters())
    for name, parameter in part.named_parameters():
        assert torch.equal(parameter, own[name.replace(".1.", ".3.", 1)]), name
    embeddings, head = part.get_input_embeddings().weight, part.get_output_embeddings().weight
    assert len(embeddings) == 400
    assert (embeddings is head) == whole.config.tie_word_embeddings
    stored = read_json(tmp_path / "model" / "config.json")
    origin = read_json(base / "config.json")
    assert stored.get("rope_parameters") == origin.get("rope_parameters")
    assert stored.get("sliding_window") == origin.get("sliding_window")
    assert str(tmp_path) not in json.dumps(stored) and str(base) not in json.dumps(stored)


def test_only_shards_that_hold_a_kept_layer_are_read(base: Path, world_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    index = read_json(copy / "model.safetensors.index.json")["weight_map"]
    gone = {f for n, f in index.items() if ".5." in n} - {f for n, f in index.items() if ".5." not in n}
    assert gone
    for file in gone:
        (copy / file).unlink()
    assert cut(copy, 3, world_folder / "tokenizer", tmp_path / "out")["layers"] == 3
    with pytest.raises(UserError, match=r"its index names .*safetensors, which is not there"):
        cut(copy, LAYERS, world_folder / "tokenizer", tmp_path / "more")


def test_bf16_is_the_base_rounded(base: Path, world_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    cut(base, 1, world_folder / "tokenizer", tmp_path, "bf16")
    own = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    for name, parameter in AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, own[name].bfloat16()), name


def test_what_a_config_says_of_each_layer_follows_it() -> None:
    from transformers import Qwen2Config, Qwen3MoeConfig, SmolLM3Config

    full, window = "full_attention", "sliding_attention"
    qwen = Qwen2Config(**SHAPE, **SLIDING)
    assert qwen.layer_types == [full] * 3 + [window] * 3
    part = cut_config(qwen, [1, 4, 5])
    assert (part.layer_types, part.max_window_layers, part.num_hidden_layers) == ([full, window, window], 1, 3)
    assert qwen.num_hidden_layers == LAYERS  # the base's config is left alone
    assert cut_config(qwen, [0, 1]).max_window_layers == 2
    smol = SmolLM3Config(**SHAPE, no_rope_layers=[1, 1, 0, 1, 0, 1])
    assert cut_config(smol, [1, 2, 4]).no_rope_layers == [1, 0, 0]
    mixed = Qwen3MoeConfig(**SHAPE, mlp_only_layers=[0, 3, 4], num_experts=2)
    assert cut_config(mixed, [0, 2, 4]).mlp_only_layers == [0, 2]


def test_the_papers_sizes_are_counted_exactly() -> None:
    from transformers import LlamaConfig

    from launch.needs import KNOWN_BASES

    seven = LlamaConfig(**KNOWN_BASES["meta-llama/Llama-2-7b-hf"], tie_word_embeddings=False)
    thirteen = LlamaConfig(**KNOWN_BASES["meta-llama/Llama-2-13b-hf"], tie_word_embeddings=False)
    # parameters of the published causal models: first 2 and 4 layers of 7B, first 5 of 13B
    assert disk_bytes(seven, kept=range(2), bytes_per_parameter=4)[0] == 666_914_816
    assert disk_bytes(seven, kept=range(4), bytes_per_parameter=4)[0] == 1_071_681_536
    assert disk_bytes(thirteen, kept=range(5), bytes_per_parameter=4)[0] == 1_913_707_520


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (0, r"truncate\.layers = 0: must keep at least one layer\. Fix: set truncate\.layers to 1"),
        (-2, r"truncate\.layers = -2: must keep at least one layer"),
        ([], r"truncate\.layers = \[\]: must keep at least one layer"),
        ([2, 1], r"truncate\.layers = \[2, 1\]: must be layer numbers that rise.*Fix: for example \[1, 2\]"),
        ([0, 1, 1], r"truncate\.layers = \[0, 1, 1\]: must be layer numbers that rise"),
        ([-1, 2], r"truncate\.layers = \[-1, 2\]: must be layer numbers that rise from 0"),
        (True, r"truncate\.layers = True: must be a number of layers or a list"),
        ("4", r"truncate\.layers = '4': must be a number of layers or a list"),
        ([0, 1.5], r"truncate\.layers = \[0, 1\.5\]: must be a number of layers or a list"),
    ],
)
def test_layers_that_cannot_be_are_refused(layers: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TruncateConfig(layers=layers)


def test_layers_that_the_base_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"layers = 9: the base has only 3 layers\. Fix: set truncate\.layers to 3"):
        kept_layers(9, 3)
    with pytest.raises(UserError, match=r"layers = \[0, 7\]: the base has no layer 7, only 3 layers from 0 to 2"):
        kept_layers([0, 7], 3)
    assert (kept_layers(3, 3), kept_layers([0, 2], 3)) == ([0, 1, 2], [0, 2])


def spoiled(kind: str, folder: Path) -> str:
    """Spoil a copied base; returns what the refusal must say."""
    config = read_json(folder / "config.json")
    if kind == "quantised":
        write_json(folder / "config.json", {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
        return "quantised weights"
    if kind == "encoder-decoder":
        write_json(folder / "config.json", {"model_type": "t5", "is_encoder_decoder": True})
        return "is a t5 model, not a plain decoder"
    if kind == "small vocabulary":
        write_json(folder / "config.json", {**config, "vocab_size": 100})
        return r"a tokenizer of 3\d\d tokens: the base has only 100 embeddings"
    weights = folder / "model.safetensors"
    if kind == "pickled":
        weights.rename(folder / "pytorch_model.bin")
        return r"has no model\.safetensors"
    if kind == "damaged":
        weights.write_bytes(weights.read_bytes()[:200])
        return r"model\.safetensors: is damaged"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    return r"lacks 1 tensors, such as 'model\.norm\.weight'"


@pytest.mark.parametrize(
    "kind", ["quantised", "encoder-decoder", "small vocabulary", "pickled", "damaged", "incomplete"]
)
def test_a_base_that_cannot_be_cut_is_refused_in_one_line(kind: str, world_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world_folder / "base", tmp_path / "base")
    words = spoiled(kind, tmp_path / "base")
    with pytest.raises(UserError, match=words) as caught:
        cut(tmp_path / "base", 2, world_folder / "tokenizer", tmp_path / "out")
    assert "\n" not in str(caught.value)
