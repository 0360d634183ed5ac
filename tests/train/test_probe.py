"""The probe at depth N gives the numbers of the cut to N layers; its recall, sample and intervals follow their definitions."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.files import content_id, read_json
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from train.encoder import EncoderConfig
from train.probe import ProbeConfig, probe, probe_lines, recall_per_query, states_by_depth
from train.probe_sample import Sample, draw_sample
from train.truncate import TruncateConfig, truncate

TEXTS = ["hujan lebat di pasar", "nasi", "harga ikan naik lagi", "banjir di jalan rumah sewa", "mohon bantuan sekolah"]


def tokens_of(world: Path, texts: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    ids: list[list[int]] = AutoTokenizer.from_pretrained(world / "tokenizer")(texts)["input_ids"]
    return ids


def cut_folder(world: Path, layers: int | list[int], out: Path) -> Path:
    out.mkdir()
    config = TruncateConfig(layers=layers)
    truncate(config, base=world / "base", tokenizer=world / "tokenizer", out=out, precision="fp32", progress=Progress())
    return out / "model"


def mean_states(folder: Path, tokens: list[list[int]]) -> Any:
    """Unit means of the last states of plain transformers in float64, each text alone."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        means = [model(input_ids=torch.tensor([t])).last_hidden_state[0].mean(0) for t in tokens]
    return torch.stack([m / m.norm() for m in means]).numpy()


def shard(folder: Path, rows: list[tuple[str, list[str], list[str]]]) -> Path:
    with ShardWriter(folder, "pairs") as writer:
        writer.extend(pair_row(q, p, n, "test", "ms") for q, p, n in rows)
    return folder


def run_probe(world: Path, out: Path, *, cut: list[int] | None = None, base: Path | None = None, **config: Any) -> Any:
    out.mkdir(exist_ok=True)
    counts = probe(
        ProbeConfig(**config), EncoderConfig(max_tokens=32), base=base or world / "base", tokenizer=world / "tokenizer",
        pairs=world / "pairs", source="synth", cut=cut, out=out, seed=5, progress=Progress(),
    )  # fmt: skip
    return counts, read_json(out / "probe.json")


def test_every_depth_is_the_cut_to_that_depth(world_folder: Path, tmp_path: Path) -> None:
    import numpy as np
    from transformers import AutoModel

    tokens = tokens_of(world_folder, TEXTS)
    vectors, turns = states_by_depth(
        AutoModel.from_pretrained(world_folder / "base"), tokens, bidirectional=False, budget_tokens=12
    )
    assert vectors.shape == (4, len(TEXTS), 32) and len(turns) == 3
    for depth in (1, 2, 3):
        expected = mean_states(cut_folder(world_folder, depth, tmp_path / str(depth)), tokens)
        assert np.abs(vectors[depth] - expected).max() < 1e-5
        if depth > 1:
            assert np.abs(vectors[depth - 1] - expected).max() > 1e-4  # the comparison can fail


def test_a_base_that_cannot_be_packed_gives_the_same_states(
    world_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from transformers import AutoModel

    import train.attention_layout

    def states() -> tuple[Any, list[float]]:
        model = AutoModel.from_pretrained(world_folder / "base")
        return states_by_depth(model, tokens_of(world_folder, TEXTS), bidirectional=False, budget_tokens=1000)

    packed, turns = states()

    def refuse(model: Any) -> None:
        raise RuntimeError("no packing here")

    monkeypatch.setattr(train.attention_layout, "use_packed_attention", refuse)
    alone, turns_alone = states()
    assert np.abs(packed - alone).max() < 1e-5
    assert turns == pytest.approx(turns_alone, rel=1e-3)


def test_a_turn_is_the_mean_angle_of_a_layer(world_folder: Path) -> None:
    import torch
    from transformers import AutoModel

    tokens = tokens_of(world_folder, TEXTS)
    _, turns = states_by_depth(
        AutoModel.from_pretrained(world_folder / "base"), tokens, bidirectional=False, budget_tokens=1000
    )
    plain = AutoModel.from_pretrained(world_folder / "base", dtype=torch.float64, attn_implementation="eager")
    seen: list[tuple[Any, Any]] = []
    plain.layers[1].register_forward_hook(lambda module, given, output: seen.append((given[0][0], output[0])))
    total = 0.0
    with torch.no_grad():
        for text in tokens:
            plain(input_ids=torch.tensor([text]))
            for before, after in zip(*seen.pop(), strict=True):
                total += 1 - float(before @ after / (before.norm() * after.norm()))
    assert turns[1] == pytest.approx(total / sum(map(len, tokens)), rel=1e-4)


def test_recall_follows_its_definition() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    queries, passages = (rng.normal(size=(n, 6)).astype(np.float32) for n in (20, 60))
    passages[7] = passages[3]  # a tie: the lower index comes first
    relevant = [sorted(rng.choice(60, size=rng.integers(1, 4), replace=False).tolist()) for _ in range(20)]
    hidden = [[int(rng.integers(60))] if i % 3 == 0 else [] for i in range(20)]
    hidden = [[p for p in h if p not in relevant[i]] for i, h in enumerate(hidden)]
    sample = Sample(["q"] * 20, ["p"] * 60, relevant, hidden)
    found = recall_per_query(queries, passages, sample)
    for i in range(20):
        scored = sorted((-float(queries[i] @ passages[j]), j) for j in range(60) if j not in hidden[i])
        top = [j for _, j in scored[:10]]
        assert found[i] == pytest.approx(sum(j in top for j in relevant[i]) / len(relevant[i]))


def test_a_sample_knows_every_positive_and_never_ranks_a_query_against_itself(tmp_path: Path) -> None:
    rows = [(f"soalan {i}", [f"jawapan {i}"], [f"salah {i}"]) for i in range(40)]
    rows += [(f"soalan {i}", [f"jawapan lain {i}"], []) for i in range(40)]  # the same queries with other positives
    rows += [(f"jawapan {i}", [f"soalan {i}"], []) for i in range(10)]  # a query that is also a passage
    pairs = Shards(shard(tmp_path / "pairs", rows), "pairs")
    sample = draw_sample(pairs, queries=30, passages=80, seed=1)
    assert len(sample.queries) == len(set(sample.queries)) == 30
    assert len(sample.passages) == len(set(sample.passages)) == 80
    assert [content_id(p) for p in sample.passages] == sorted(content_id(p) for p in sample.passages)
    answers: dict[str, set[str]] = {}
    for query, positives, _ in rows:
        answers.setdefault(query, set()).update(positives)
    for query, relevant, hidden in zip(sample.queries, sample.relevant, sample.hidden, strict=True):
        assert {sample.passages[j] for j in relevant} == answers[query] & set(sample.passages)
        assert [sample.passages[j] for j in hidden] == ([query] if query in sample.passages else [])
    assert draw_sample(pairs, queries=30, passages=80, seed=1) == sample
    assert draw_sample(pairs, queries=30, passages=80, seed=2) != sample


def test_too_few_pairs_are_refused(tmp_path: Path) -> None:
    one = Shards(shard(tmp_path / "pairs", [("soalan", ["jawapan"], ["salah"]), ("x", ["x"], [])]), "pairs")
    with pytest.raises(UserError, match=r"probe: 1 queries and 2 passages.*Fix: probe a larger source"):
        draw_sample(one, queries=10, passages=10, seed=0)


def test_the_record_and_its_table(world_folder: Path, tmp_path: Path) -> None:
    counts, record = run_probe(world_folder, tmp_path / "a", queries=8, passages=30)
    rows = record["rows"]
    assert [r["layers"] for r in rows] == [0, 1, 2, 3]
    assert (record["base_layers"], counts["layers"], counts["queries"]) == (3, 3, record["queries"])
    for row in rows:
        recall, against = row["recall"], row["against_all"]
        assert 0 <= recall["low"] <= recall["mean"] <= recall["high"] <= 1
        assert against["mean"] == pytest.approx(recall["mean"] - rows[-1]["recall"]["mean"], abs=2e-6)
    assert rows[-1]["against_all"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    steps = [b["parameters"] - a["parameters"] for a, b in itertools.pairwise(rows)]
    assert len(set(steps)) == 1 and steps[0] > 0
    assert 1 <= record["enough_layers"] <= record["best_layers"] <= 3
    lines = probe_lines(record, kept=2)
    assert len(lines) == 8 and [i for i, line in enumerate(lines) if "truncate.layers" in line] == [4]
    _, again = run_probe(world_folder, tmp_path / "b", queries=8, passages=30, budget_tokens=16)
    assert again["rows"][0]["recall"] == rows[0]["recall"]


def test_a_list_cut_is_measured_on_its_own(world_folder: Path, tmp_path: Path) -> None:
    import numpy as np

    _, record = run_probe(world_folder, tmp_path / "a", cut=[0, 2], queries=8, passages=30)
    sample = draw_sample(Shards(world_folder / "pairs", "pairs"), queries=8, passages=30, seed=5)
    folder = cut_folder(world_folder, [0, 2], tmp_path / "cut")
    vectors = mean_states(folder, tokens_of(world_folder, [*sample.queries, *sample.passages])).astype(np.float32)
    found = recall_per_query(vectors[: len(sample.queries)], vectors[len(sample.queries) :], sample).mean()
    assert record["cut"]["recall"]["mean"] == pytest.approx(found, abs=1e-6)
    assert record["cut"]["layers"] == [0, 2]
    assert record["cut"]["parameters"] == record["rows"][2]["parameters"]
    assert "0,2" in probe_lines(record, kept=[0, 2])[-3]
    with pytest.raises(UserError, match=r"truncate\.layers = \[0, 3\]: the base has no layer 3"):
        run_probe(world_folder, tmp_path / "b", cut=[0, 3])


def test_a_layer_that_spoils_the_states_is_seen(world_folder: Path, tmp_path: Path) -> None:
    """Layers 0 and 1 hand on what they get; layer 2 buries it: the figures must say so."""
    import torch
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    shutil.copytree(world_folder / "base", base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.weight.mul_(0)
            layer.mlp.down_proj.weight.fill_(0 if number < 2 else 1e6)  # every token in one direction
        # embeddings orthogonal enough that shared words decide
        model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(base)
    rows = [(f"{a} {b}", [f"{b} {a} lagi"], []) for a in "abcdefgh" for b in "ijklmnop"]
    shard(tmp_path / "pairs", rows)
    world = tmp_path
    shutil.copytree(world_folder / "tokenizer", world / "tokenizer")
    _, record = run_probe(world, tmp_path / "out", queries=40, passages=64)
    recalls = [r["recall"]["mean"] for r in record["rows"]]
    assert recalls[0] == recalls[1] == recalls[2] > recalls[3] + 0.1
    assert [r["turn"] for r in record["rows"][1:3]] == pytest.approx([0, 0], abs=1e-6)
    assert record["rows"][3]["turn"] > 0.3
    assert (record["best_layers"], record["enough_layers"]) == (1, 1)
    assert record["rows"][1]["against_all"]["low"] > 0


def test_a_shallow_probe_reads_only_its_layers(world_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(world_folder / "base", base)
    tensors = load_file(base / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".layers.2." not in k}, base / "model.safetensors", {"format": "pt"})
    _, record = run_probe(world_folder, tmp_path / "a", base=base, layers=2, queries=8, passages=30)
    assert [r["layers"] for r in record["rows"]] == [0, 1, 2] and record["base_layers"] == 3
    with pytest.raises(UserError, match=r"lacks \d+ tensors, such as 'layers\.2\."):
        run_probe(world_folder, tmp_path / "b", base=base)
