"""Texts with a long tail of lengths, a tokenizer trained on them, a seeded Llama, and pair shards: what all sides load.

The words are generated (drawn from 20,000 pseudo-Malay words, the common ones often) or, with a data folder, runs of
real text. Lengths are log-normal in tokens and are measured again with the tokenizer before anything is said of them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.files import read_jsonl
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import ShardWriter
from data_prep.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from train.draws import Draws
from train.encoder import EncoderConfig, save_encoder_config
from train.export import write_folder
from train.finetune_config import FinetuneConfig
from train.pair_stream import PairStream, load_sources

REAL_FILES = ("news_ms", "web_ms", "legal_ms", "research_ms_id")
"""Of `corpora/`: long running text, so that a slice of any length can be cut from it."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a text: log-normal by its median and 95th percentile, cut at `longest`."""

    median: float = 60
    p95: float = 500
    longest: int = 512

    def draw(self, count: int, generator: Any) -> Any:
        """[count] whole numbers, at least 6."""
        sigma = math.log(self.p95 / self.median) / 1.6449
        drawn = generator.lognormal(math.log(self.median), sigma, size=count)
        return drawn.clip(6, self.longest).astype(int)


@dataclass(frozen=True)
class Shape:
    """A Llama: width, layers, heads, key-value heads, feed-forward width, vocabulary."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    feed_forward: int = 704
    vocabulary: int = 8192


TOY = Shape(hidden=32, layers=2, heads=4, key_value_heads=2, feed_forward=64, vocabulary=600)
LLAMA2_7B_CUT = Shape(hidden=4096, layers=4, heads=32, key_value_heads=32, feed_forward=11008, vocabulary=32000)
"""The first 4 layers of Llama2-7B: the 1B of arXiv 2402.03053."""


def words(data: Path | None, generator: Any, *, count: int) -> list[str]:
    """So many words in a row: generated, or real text of a data folder with `corpora/`."""
    if data is not None:
        found: list[str] = []
        for kind in REAL_FILES:
            part: list[str] = []
            for _, row in read_jsonl(data / "corpora" / f"{kind}.jsonl.gz", required=("text",)):
                part += row["text"].split()
                if len(part) > count // len(REAL_FILES):
                    break
            found += part
        return found
    starts, ends = ["b", "k", "t", "s", "m", "p", "d", "g", "l", "r", "n", "j"], ["", "", "n", "ng", "r", "s"]
    vowels = "aiueo"

    def word() -> str:
        parts = generator.integers(0, [len(starts), len(vowels), len(ends)], size=(int(generator.integers(1, 4)), 3))
        return "".join(starts[a] + vowels[b] + ends[c] for a, b, c in parts)

    known = [word() for _ in range(20_000)]
    places = (generator.zipf(1.2, size=count) - 1) % len(known)
    return [known[i] for i in places]


def make_world(
    folder: Path, *, shape: Shape, lengths: Lengths, pairs: int, data: Path | None, seed: int, head: bool = False
) -> dict[str, Any]:
    """Write `model/` (a Hugging Face folder with tokenizer), `st/` (for sentence-transformers), `pairs/`.

    Args:
        pairs: rows of the pair shards. head: keep an output head in `model/`, for pretraining, and write no `st/`.

    Returns:
        Facts: measured token lengths, parameters, vocabulary.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    generator = np.random.default_rng(seed)
    stream = words(data, generator, count=400_000)
    quiet = Progress()
    with ShardWriter(folder / "documents", "documents") as writer:
        for i in range(0, len(stream), 100):
            writer.append(
                {"id": f"d{i}", "text": " ".join(stream[i : i + 100]), "source": "benchmark", "language": "ms"}
            )
    (folder / "tokenizer").mkdir()
    config = TokenizerConfig(vocab_size=shape.vocabulary)
    train_tokenizer(config, documents=folder / "documents", out=folder / "tokenizer", progress=quiet)
    tokenizer = load_tokenizer(folder / "tokenizer")
    per_word = len(tokenizer.tokenize(" ".join(stream[:2_000]))) / 2_000

    def text(tokens: int) -> str:
        size = max(2, round((tokens - 2) / per_word))
        start = int(generator.integers(0, len(stream) - size))
        return " ".join(stream[start : start + size])

    with ShardWriter(folder / "pairs", "pairs") as writer:
        for query, passage in lengths.draw(2 * pairs, generator).reshape(pairs, 2):
            wanted = text(int(query))
            # half of the query's words come back, so that there is something to learn
            shared = wanted.split()[: max(1, int(passage) // 4)]
            rest = text(int(passage)).split()[: max(1, round((int(passage) - 2) / per_word) - len(shared))]
            writer.append(pair_row(wanted, [" ".join([*shared, *rest])], [], "benchmark", "ms"))

    torch.manual_seed(seed)
    network: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=max(2048, lengths.longest),
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    saved = network if head else network.model
    saved.save_pretrained(folder / "model")
    tokenizer.save_pretrained(str(folder / "model"))
    save_encoder_config(EncoderConfig(max_tokens=lengths.longest), folder / "model")
    if not head:
        write_folder(folder / "model", folder / "st")
    return {
        "shape": asdict(shape),
        "parameters": sum(p.numel() for p in network.model.parameters()),
        "text": "generated" if data is None else "real text (corpora/: " + ", ".join(REAL_FILES) + ")",
        "tokens_per_word": round(per_word, 2),
    }


def pair_stream(
    pairs: Path, tokenizer: Any, config: FinetuneConfig, encoder: EncoderConfig, *, seed: int
) -> PairStream:
    """The global batches of one rank over a folder of pair shards, as finetuning makes them."""
    shards, sources = load_sources({"pairs": 1.0}, {"pairs": pairs})
    return PairStream(
        shards,
        sources,
        tokenizer=tokenizer,
        encoder=encoder,
        seed=seed,
        order_batch=config.batch_pairs,
        positives=config.positives,
        hard_negatives=config.hard_negatives,
        homogeneous=config.homogeneous,
        avoid_duplicates=config.avoid_duplicates,
        rank=0,
        ranks=1,
    )


def draws_of(stream: PairStream, steps: int) -> Draws:
    """The draws of the first `steps` steps of a stream."""
    batch = stream.arrangement.order_batch
    return Draws(stream.order, batch=batch, end=steps * batch, arrangement=stream.arrangement)


def write_batches(stream: PairStream, path: Path, *, steps: int) -> list[int]:
    """The texts of every batch as JSON lines, for trainers that do not read our shards. Returns all token counts.

    Raises `ValueError` where a batch holds a text twice: the trainers would then disagree on what a negative is.
    """
    counts: list[int] = []
    draws = draws_of(stream, steps)
    with path.open("w") as file:
        for step in range(1, steps + 1):
            draw = draws(step)
            if draw.duplicates:
                raise ValueError(f"batch {step} holds {draw.duplicates} pairs that share a text: use more pairs")
            rows = [chosen for _, chosen in stream.rows(draw)]
            file.write(json.dumps([[row.query, row.passages[0]] for row in rows]) + "\n")
            counts += [len(ids) for ids in stream.hand(rows, draw=draw, samples=draw.samples).ids]
    return counts


def length_facts(rows: list[int]) -> dict[str, float]:
    """Median, 95th percentile, mean and greatest of token counts."""
    import numpy as np

    values = np.asarray(rows)
    return {
        "median": float(np.median(values)),
        "p95": float(np.quantile(values, 0.95)),
        "mean": float(values.mean()),
        "longest": float(values.max()),
    }
