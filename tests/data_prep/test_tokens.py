from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from data_prep.tokens import RowPacker, SourcePacker, TokensConfig, build_tokens, in_validation


@pytest.fixture
def prepared(tmp_path: Path, write_documents: Any, topics: Any) -> Path:
    texts = [*topics(120, words=30), "panjang " * 400, "Teks yang menyebut <eos> dan <bos> sahaja."]
    write_documents(tmp_path / "documents", texts)
    config = TokenizerConfig(vocab_size=400)
    train_tokenizer(config, documents=tmp_path / "documents", out=tmp_path / "tokenizer", progress=Progress())
    return tmp_path


def _build(folder: Path, name: str = "tokens", *, seed: int = 0, **config: Any) -> dict[str, int | float]:
    settings = TokensConfig(**{"row_tokens": 64, "validation_fraction": 0.2, **config})
    return build_tokens(
        settings,
        documents=folder / "documents",
        tokenizer=folder / "tokenizer",
        out=folder / name,
        seed=seed,
        progress=Progress(),
    )


def _pieces(folder: Path) -> list[list[int]]:
    """The documents as the rows tell them: cut at the starts; a piece that does not open with <bos> goes on."""
    pieces: list[list[int]] = []
    for row in Shards(folder, "tokens"):
        edges = [*row["document_starts"], len(row["input_ids"])]
        for a, b in pairwise(edges):
            piece = row["input_ids"][a:b]
            if piece[0] == 1:
                pieces.append(piece)
            else:
                pieces[-1] += piece
    return pieces


def test_rows_hold_the_documents_and_nothing_else(prepared: Path) -> None:
    counts = _build(prepared)
    tokenizer = load_tokenizer(prepared / "tokenizer")
    texts = Shards(prepared / "documents", "documents").column("text")
    expected = {tuple(tokenizer(text)["input_ids"]) for text in texts}
    seen = []
    for part in ("train", "validation"):
        rows = list(Shards(prepared / "tokens" / part, "tokens"))
        assert len(rows) == counts[f"{part}_rows"] > 0
        for row in rows:
            starts = row["document_starts"]
            assert len(row["input_ids"]) == 64
            assert starts[0] == 0 and starts == sorted(set(starts)) and starts[-1] < 64
            begins = [n for n, token in enumerate(row["input_ids"]) if token == 1]
            assert set(begins) <= set(starts) <= {0, *begins}
        pieces = _pieces(prepared / "tokens" / part)
        assert all(tuple(piece) in expected for piece in pieces[:-1])  # the last may have lost its end
        seen += [tuple(piece) for piece in pieces[:-1]]
    assert len(seen) == len(set(seen)), "a document came twice"
    assert max(map(len, expected)) > 64, "a document longer than a row was tested"
    assert counts["tokens"] == sum(map(len, expected))
    assert counts["tokens"] == counts["train_tokens"] + counts["validation_tokens"] + counts["dropped_tokens"]
    assert counts["train_documents"] + counts["validation_documents"] == counts["documents"] == len(texts)
    assert counts["dropped_tokens"] < 2 * 64


def test_batches_do_not_change_the_rows(prepared: Path) -> None:
    for name, size in (("a", 1), ("b", 7), ("c", 1000)):
        _build(prepared, name, batch_documents=size)
    contents = [
        [(row["input_ids"], row["document_starts"]) for row in Shards(prepared / name / "train", "tokens")]
        for name in "abc"
    ]
    assert contents[0] == contents[1] == contents[2]


def test_seed_orders_and_never_moves_a_document_to_the_other_side(prepared: Path) -> None:
    _build(prepared, "a", seed=0)
    _build(prepared, "b", seed=0)
    _build(prepared, "c", seed=1)
    prints = [Shards(prepared / n / "train", "tokens").fingerprint for n in "abc"]
    assert prints[0] == prints[1] != prints[2]
    ids = Shards(prepared / "documents", "documents").column("id")
    held = [i for i in ids if in_validation(i, 0.2)]
    assert {i for i in ids if in_validation(i, 0.1)} < set(held) < {i for i in ids if in_validation(i, 0.5)}
    assert not any(in_validation(i, 0.0) for i in ids)


def test_split_follows_the_fraction() -> None:
    share = np.mean([in_validation(f"{n:032x}", 0.05) for n in range(20_000)])
    assert abs(share - 0.05) < 0.006


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), max_size=6), max_size=6), st.integers(8, 20))
def test_packer_against_plain_python(tmp_path_factory: pytest.TempPathFactory, lengths: Any, size: int) -> None:
    folder = tmp_path_factory.mktemp("packer")
    number = iter(range(10**6))
    batches = [[[next(number) for _ in range(n)] for n in batch] for batch in lengths]
    with ShardWriter(folder, "tokens") as writer:
        packer = RowPacker(writer, size)
        for batch in batches:
            packer.add(batch)
    flat = [token for batch in batches for document in batch for token in document]
    firsts = {document[0] for batch in batches for document in batch}
    rows = list(Shards(folder, "tokens"))
    assert [t for row in rows for t in row["input_ids"]] == flat[: len(flat) // size * size]
    for row in rows:
        assert row["document_starts"] == [n for n, t in enumerate(row["input_ids"]) if n == 0 or t in firsts]
    assert packer.remainder == len(flat) % size and packer.rows == len(rows)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=6), max_size=6),
    st.integers(8, 20),
)
def test_rows_of_one_source_each_and_nothing_lost(
    tmp_path_factory: pytest.TempPathFactory, batches: Any, size: int
) -> None:
    folder = tmp_path_factory.mktemp("sources")
    number = iter(range(10**6))
    streams: dict[str, list[int]] = {}
    with ShardWriter(folder, "tokens") as writer:
        packer = SourcePacker(writer, size)
        for batch in batches:
            documents = [[next(number) for _ in range(n)] for _, n in batch]
            for (source, _), document in zip(batch, documents, strict=True):
                streams.setdefault(source, []).extend(document)
            packer.add(documents, [source for source, _ in batch])
        packer.finish()
    rows = list(Shards(folder, "tokens"))
    rests = []
    for source, stream in streams.items():
        whole = len(stream) // size * size
        assert [t for r in rows if r["source"] == source for t in r["input_ids"]] == stream[:whole]
        rests += stream[whole:]
    mixed = [t for r in rows if r["source"] is None for t in r["input_ids"]]
    assert set(mixed) <= set(rests) and len(mixed) == len(rests) // size * size
    assert packer.remainder == len(rests) % size
    assert (packer.rows, packer.tokens) == (len(rows), len(rows) * size)
    assert packer.documents == sum(map(len, batches))


def test_validation_rows_name_their_source_and_training_rows_mix(prepared: Path) -> None:
    _build(prepared)
    sources = [Shards(prepared / "tokens" / part, "tokens").column("source") for part in ("train", "validation")]
    assert set(sources[0]) == {None}
    assert "test" in sources[1]


def test_too_little_text(prepared: Path) -> None:
    with pytest.raises(UserError, match=r"tokens.row_tokens = 100000.*less than one row"):
        _build(prepared, row_tokens=100_000)
    with pytest.raises(UserError, match=r"tokens.validation_fraction = 1e-06.*holds out 0 documents"):
        _build(prepared, validation_fraction=1e-6)
    assert _build(prepared, "none", validation_fraction=0.0)["validation_rows"] == 0
    assert not (prepared / "tokens" / "train" / "manifest.json").exists()


def test_damaged_shard_is_named(prepared: Path) -> None:
    part = prepared / "documents" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(UserError, match=r"part-00000.parquet.*checksum"):
        _build(prepared)


@pytest.mark.parametrize(
    "bad", [{"row_tokens": -1}, {"validation_fraction": 1.0}, {"max_documents": 0}, {"batch_documents": -2}]
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokensConfig(**bad)
