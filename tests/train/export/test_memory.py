"""Writing holds some tensors' pieces, never a file's or a model's worth: measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

REPO = Path(__file__).resolve().parents[3]
SHARD_GB = 0.09
SCRIPT = """
import json, re, sys
from pathlib import Path
from train.export import checkpoint_to_model
from train.export.weights import FolderSource, write_weights

def memory(what):
    return int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

big, small, base, tiny_base, out = map(Path, sys.argv[1:])
for name in ("warm", "fp32", "bf16", "again"):
    (out / name).mkdir(parents=True)
checkpoint_to_model(small, tiny_base, out / "warm")  # all imports, and what torch sets up once
before = memory("VmRSS")
counts = checkpoint_to_model(big, base, out / "fp32", shard_gb=%(shard)s)
after_fp32 = memory("VmHWM")
checkpoint_to_model(big, base, out / "bf16", dtype="bf16", shard_gb=%(shard)s)
write_weights(FolderSource(out / "fp32"), out / "again", dtype="fp16", shard_gb=%(shard)s)
print(json.dumps({"fp32": after_fp32 - before, "all": memory("VmHWM") - before, **counts}))
"""


def language_model(**sizes: int) -> Any:
    """With weights that cost no time: uniform, and different in every tensor."""
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(
            LlamaConfig(num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, **sizes)
        )
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return model


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path, save_checkpoint: Callable[..., Path]) -> None:
    """The peak is that of the whole process (VmHWM), above what it holds once everything is imported."""
    models: dict[str, Any] = {}
    for name, sizes in (
        ("tiny", {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}),
        ("big", {"vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4}),
    ):
        models[name] = torch.nn.Module()
        models[name].model = language_model(**sizes)
        models[name].model.config.save_pretrained(tmp_path / f"{name}_base")
        save_checkpoint(models[name], ranks=2, step=1, folder=tmp_path / name, kinds=("weight",))
    places = [*(tmp_path / name / "step-00000001" for name in ("big", "tiny"))]
    places += [tmp_path / name for name in ("big_base", "tiny_base", "out")]
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT % {"shard": SHARD_GB}, *map(str, places)],
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    told = json.loads(answer.stdout.splitlines()[-1])
    print(told)
    assert told["bytes"] > 250e6 and told["files"] >= 3  # else it would prove nothing
    assert told["fp32"] <= 1.3 * told["largest_file_bytes"], told
    assert told["all"] <= 1.3 * told["largest_file_bytes"], told

    weights = dict(models["big"].model.named_parameters())
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "again": torch.float16}
    for name, kind in kinds.items():
        index = json.loads((tmp_path / "out" / name / "model.safetensors.index.json").read_text())["weight_map"]
        assert index.keys() == weights.keys()
        for file in set(index.values()):
            with safe_open(tmp_path / "out" / name / file, framework="pt") as part:
                for key in part.keys():  # noqa: SIM118 (not a mapping)
                    assert torch.equal(part.get_tensor(key), weights[key].to(kind)), (name, key)
