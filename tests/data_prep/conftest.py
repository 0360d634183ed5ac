"""Small corpora on disk for the tests of data_prep."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.files import content_id
from data_prep.shards import ShardWriter

WriteJsonl = Callable[[Path, Iterable[Any]], Path]
WriteDocuments = Callable[[Path, Iterable[str]], Path]

TOPICS = {
    "masakan": "nasi lemak santan sambal ikan bilis kelapa periuk resipi dapur rasa pedas rendang ketupat juadah",
    "undang": "akta seksyen mahkamah hakim perlembagaan fasal peguam tertuduh hukuman denda parlimen pindaan rang",
    "sukan": "pasukan bola jaringan pemain jurulatih perlawanan stadium gol liga piala penjaga kemenangan",
    "sihat": "doktor pesakit hospital ubat demam klinik rawatan penyakit vaksin darah jantung diabetes simptom",
}


def topic_documents(count: int, *, seed: int = 0, words: int = 40) -> list[str]:
    """Documents of four topics: a title line and sentences whose words are drawn from the topic's own words."""
    generator = np.random.default_rng(seed)
    names = sorted(TOPICS)
    documents = []
    for number in range(count):
        name = names[number % len(names)]
        vocabulary = TOPICS[name].split()
        subset = generator.choice(vocabulary, 8, replace=False)  # neighbours differ in how much they share
        drawn = [str(word) for word in generator.choice(subset, words)]
        cut = words // 2
        body = f"{' '.join(drawn[:cut]).capitalize()}. {' '.join(drawn[cut:]).capitalize()}."
        documents.append(f"Perihal {name} nombor {number}\n{body}")
    return documents


@pytest.fixture
def write_jsonl() -> WriteJsonl:
    """Write objects as JSON lines, gzip'd where the name ends in .gz."""

    def write(path: Path, rows: Iterable[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path

    return write


@pytest.fixture
def write_documents() -> WriteDocuments:
    """Write texts as a shard folder of kind `documents`."""

    def write(folder: Path, texts: Iterable[str]) -> Path:
        with ShardWriter(folder, "documents") as writer:
            for text in texts:
                writer.append({"id": content_id(text), "text": text, "source": "test", "language": "ms"})
        return folder

    return write


@pytest.fixture
def topics() -> Callable[..., list[str]]:
    """`topic_documents`, for tests (test folders are no packages)."""
    return topic_documents


@pytest.fixture
def evaluation_set(tmp_path: Path, write_jsonl: WriteJsonl) -> Path:
    """One evaluation set: two documents (the first with a title), two queries."""
    folder = tmp_path / "sets" / "mini"
    write_jsonl(
        folder / "corpus.jsonl.gz",
        [
            {"_id": "d1", "title": "Harga minyak naik", "text": "Harga minyak naik lima sen mulai esok pagi."},
            {"_id": "d2", "title": "", "text": "Kucing itu tidur di atas meja makan."},
        ],
    )
    write_jsonl(
        folder / "queries.jsonl.gz",
        [{"_id": "q1", "text": "berapa harga minyak esok hari"}, {"_id": "q2", "text": "di mana kucing itu tidur"}],
    )
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    return folder
