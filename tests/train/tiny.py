"""A tiny model, tokenizer and shards, made in a second, for the tests of this room."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import ShardWriter
from data_prep.tokenizer import TokenizerConfig, train_tokenizer
from train.backbone import BaseConfig, RandomBaseConfig, make_base
from train.encoder import EncoderConfig
from train.truncate import TruncateConfig, truncate

WORDS = [
    "banjir",
    "sekolah",
    "bantuan",
    "mohon",
    "hujan",
    "lebat",
    "jalan",
    "kereta",
    "rumah",
    "sewa",
    "makan",
    "sedap",
    "nasi",
    "harga",
    "naik",
    "turun",
    "pasar",
    "ikan",
]
ENCODER = EncoderConfig(max_tokens=32)
PRETRAIN: dict[str, Any] = {
    "precision": "fp32",
    "batch_rows": 8,
    "micro_batch_tokens": 80,
    "gradient_clip": 0.0,
    "learning_rate": 1e-3,
}


def sentence(rng: random.Random, low: int = 3, high: int = 20) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def make_documents(folder: Path, *, count: int = 200, seed: int = 0) -> Path:
    rng = random.Random(seed)
    with ShardWriter(folder, "documents") as writer:
        for i in range(count):
            writer.append({"id": f"d{i}", "text": sentence(rng, 5, 30), "source": "test", "language": "ms"})
    return folder


def make_world(folder: Path, *, layers: int = 2) -> Path:
    """`tokenizer/`, `model/` (a cut of a seeded base), `tokens/` and `pairs/` with duplicates and uneven negatives."""
    quiet = Progress()
    documents = make_documents(folder / "documents")
    for name in ("tokenizer", "base", "cut"):
        (folder / name).mkdir()
    train_tokenizer(TokenizerConfig(vocab_size=320), documents=documents, out=folder / "tokenizer", progress=quiet)
    from data_prep.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    base = BaseConfig(
        random=RandomBaseConfig(hidden=32, layers=layers + 1, heads=4, key_value_heads=2, feed_forward=64)
    )
    make_base(base, vocabulary=len(tokenizer), out=folder / "base", seed=1, progress=quiet)
    truncate(
        TruncateConfig(layers=layers), base=folder / "base", tokenizer=folder / "tokenizer", out=folder / "cut",
        precision="fp32", progress=quiet,
    )  # fmt: skip
    (folder / "cut" / "model").rename(folder / "model")
    rng = random.Random(3)
    with ShardWriter(folder / "tokens", "tokens") as writer:
        for row in range(16):
            starts = sorted({0, *(rng.randrange(1, 40) for _ in range(rng.randint(0, 4)))})
            ids = [rng.randrange(3, 300) for _ in range(40)]
            source = "forum" if row == 15 else None if row % 4 == 3 else "berita"
            writer.append({"input_ids": ids, "document_starts": starts, "source": source})
    with ShardWriter(folder / "pairs", "pairs") as writer:
        for i in range(12):
            negatives = [sentence(rng) for _ in range(i % 3)]
            positives = ["hujan lebat di pasar"] if i in (2, 7) else [sentence(rng)]  # two rows share a positive
            writer.append(pair_row(sentence(rng, 2, 8), positives, negatives, "test", "ms"))
    return folder
