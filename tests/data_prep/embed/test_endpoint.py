"""The embedding endpoint against a server that answers out of order, with faults, and with another model's vectors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.embedder import Teacher
from data_prep.embed.endpoint import EmbeddingEndpointConfig, EndpointEmbedder
from data_prep.embed.store import embed_texts
from data_prep.errors import UserError
from data_prep.files import content_id
from tests.data_prep import endpoint_server as faults
from tests.data_prep.endpoint_server import Asked, EndpointServer, Fault, vector_of

Make = Callable[..., EndpointEmbedder]
TEXTS = [f"ayat nombor {number} " + "panjang " * (number % 7) for number in range(50)]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as running:
        yield running


@pytest.fixture
def make(server: EndpointServer) -> Make:
    def build(*, fields: dict[str, Any] | None = None, **arguments: Any) -> EndpointEmbedder:
        usual = {"base_url": server.url, "model": server.model, "backoff_s": 0.01, "batch_size": 8}
        return EndpointEmbedder(EmbeddingEndpointConfig(**{**usual, **(fields or {})}), **arguments)

    return build


def expected(texts: list[str], dimension: int = 8) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Unit rows of what the server gives, in float64."""
    raw = np.array([vector_of(text, dimension) for text in texts], dtype=np.float64)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


@pytest.mark.parametrize("encoding", ["auto", "base64", "float"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_text_gets_its_own_vector(server: EndpointServer, make: Make, encoding: str, batch_size: int) -> None:
    server.rule = lambda asked: faults.slow(0.01 * (asked.number % 3))  # answers overtake each other
    embedder = make(fields={"encoding": encoding, "batch_size": batch_size})
    vectors = embedder.embed(TEXTS, role="passage")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(TEXTS), atol=1e-6)
    sent = [text for asked in server.asked[1:] for text in asked.body["input"]]
    assert sorted(sent) == sorted(TEXTS)
    assert max(len(asked.body["input"]) for asked in server.asked) <= batch_size


def test_it_is_a_teacher(make: Make) -> None:
    embedder = make(query_prefix="query: ")
    assert isinstance(embedder, Teacher)
    assert (embedder.name, embedder.dimension, embedder.prompt("query"), embedder.prompt("passage")) == (
        "test-model", 8, "query: ", "",
    )  # fmt: skip


def test_the_hash_tells_models_apart_and_not_servers(make: Make) -> None:
    base = make().hash
    assert make(fields={"base_url": "http://127.0.0.1:9/v1", "concurrency": 3, "price_in": 1.0}).hash == base
    others = [{"model": "other"}, {"dimensions": 4}, {"max_characters": 10}]
    assert len({base, *(make(fields=fields).hash for fields in others)}) == 4


def test_raw_rows_keep_their_length(make: Make) -> None:
    raw = make(normalise=False).embed(TEXTS, role="passage")
    assert np.array_equal(raw, np.array([vector_of(text, 8) for text in TEXTS], dtype=np.float32))


def test_prefixes_and_cuts_reach_the_server(server: EndpointServer, make: Make) -> None:
    embedder = make(query_prefix="query: ", fields={"max_characters": 12})
    embedder.embed(["satu dua tiga empat"], role="query")
    embedder.embed(["satu dua tiga empat"], role="passage")
    assert [asked.body["input"] for asked in server.asked[1:]] == [["query: satu "], ["satu dua tig"]]


def test_a_server_without_base64_is_asked_for_numbers(make: Make) -> None:
    with EndpointServer(base64=False) as plain:
        embedder = make(fields={"base_url": plain.url})
        np.testing.assert_allclose(embedder.embed(TEXTS, role="passage"), expected(TEXTS), atol=1e-6)
        formats = [asked.body["encoding_format"] for asked in plain.asked]
        assert formats[0] == "base64" and set(formats[1:]) == {"float"}
        assert embedder.counts["failed"] == 0


def test_a_shorter_dimension_is_asked_for(server: EndpointServer, make: Make) -> None:
    embedder = make(fields={"dimensions": 5})
    assert embedder.dimension == 5 and server.asked == []  # known without asking
    np.testing.assert_allclose(embedder.embed(TEXTS, role="passage"), expected(TEXTS, 5), atol=1e-6)


def test_a_model_that_cannot_shorten_is_told(server: EndpointServer, make: Make) -> None:
    server.rule = lambda _: faults.other_dimension(8)
    with pytest.raises(UserError, match=r"a vector of 8 numbers: must have the 5 numbers asked for"):
        make(fields={"dimensions": 5}).embed(TEXTS, role="passage")


def test_blank_texts_are_zero_rows_and_are_not_sent(server: EndpointServer, make: Make) -> None:
    vectors = make().embed(["", "satu", " \n"], role="passage")
    assert not vectors[[0, 2]].any() and np.linalg.norm(vectors[1]) == pytest.approx(1)
    assert [text for asked in server.asked[1:] for text in asked.body["input"]] == ["satu"]
    assert make().embed([], role="passage").shape == (0, 8)


@pytest.mark.parametrize(
    "fault",
    [
        faults.rate_limited(0.01),
        faults.server_error(),
        faults.cut(),
        faults.malformed(),
        Fault(change=lambda answer: {**answer, "data": answer["data"][1:]}),
        Fault(change=lambda answer: {**answer, "data": [{**item, "index": 0} for item in answer["data"]]}),
        Fault(change=lambda answer: {**answer, "data": [{**item, "embedding": "&&"} for item in answer["data"]]}),
        Fault(change=lambda answer: {**answer, "data": [{**item, "embedding": []} for item in answer["data"]]}),
        Fault(
            change=lambda answer: {
                **answer,
                "data": [{**item, "embedding": [float("nan")] * 8} for item in answer["data"]],
            }
        ),
        Fault(change=lambda answer: {**answer, "data": [{**item, "embedding": None} for item in answer["data"]]}),
    ],
)
def test_a_fault_is_retried(server: EndpointServer, make: Make, fault: Fault) -> None:
    server.faults.extend([None, None, fault, fault])
    embedder = make()
    np.testing.assert_allclose(embedder.embed(TEXTS, role="passage"), expected(TEXTS), atol=1e-6)
    assert embedder.counts["retries"] == 2


def test_another_dimension_in_the_middle_is_told(server: EndpointServer, make: Make) -> None:
    server.rule = lambda asked: faults.other_dimension(6) if asked.number == 4 else None
    with pytest.raises(UserError, match=r"a vector of 6 numbers: must have the 8 numbers of its first answer"):
        make().embed(TEXTS, role="passage")


def test_another_dimension_than_the_stored_is_told(make: Make) -> None:
    with pytest.raises(UserError, match=r"a vector of 8 numbers: must have the 16 numbers"):
        make(dimension=16).embed(TEXTS, role="passage")


def test_another_model_in_the_middle_is_told(server: EndpointServer, make: Make) -> None:
    server.rule = lambda asked: faults.other_model("cheaper-model") if asked.number == 4 else None
    with pytest.raises(UserError, match="'test-model' and then as 'cheaper-model'"):
        make().embed(TEXTS, role="passage")


@pytest.mark.parametrize("bad", [[0], [49], [3, 17, 18, 19, 40]])
def test_a_refused_batch_is_halved_to_the_texts_at_fault(server: EndpointServer, make: Make, bad: list[int]) -> None:
    def too_long(asked: Asked) -> Fault | None:
        return faults.refused("too many tokens") if any("TERLALU" in text for text in asked.body["input"]) else None

    server.rule = too_long
    texts = [f"TERLALU {text}" if row in bad else text for row, text in enumerate(TEXTS)]
    with pytest.raises(UserError) as caught:
        make().embed(texts, role="passage")
    assert f"text {min(bad)} of 50" in caught.value.value and "too many tokens" in caught.value.rule
    assert f"{len(bad) - 1} more" in caught.value.rule and "max_characters" in caught.value.fix
    alone = [asked.body["input"] for asked in server.asked if len(asked.body["input"]) == 1]
    assert {texts[row] for row in bad} <= {texts[0] for texts in alone}


def test_a_request_that_is_too_large_for_the_server_is_halved(server: EndpointServer, make: Make) -> None:
    server.rule = lambda asked: faults.refused("too large", 413) if len(asked.body["input"]) > 3 else None
    np.testing.assert_allclose(make().embed(TEXTS, role="passage"), expected(TEXTS), atol=1e-6)


def test_long_texts_share_no_request(server: EndpointServer, make: Make) -> None:
    make(fields={"batch_characters": 100, "batch_size": 64}).embed(["x" * 90, "y" * 90, "z" * 11, "a"], role="passage")
    assert sorted(sorted(map(len, asked.body["input"])) for asked in server.asked[1:]) == [[1, 11], [90], [90]]


def test_an_endpoint_that_cannot_embed_is_told(server: EndpointServer, make: Make) -> None:
    server.rule = lambda _: faults.refused("this model writes text")
    with pytest.raises(UserError, match=r"this model writes text"):
        _ = make().dimension


RUN = """
import sys
from pathlib import Path
from data_prep.embed.endpoint import EmbeddingEndpointConfig, EndpointEmbedder
config = EmbeddingEndpointConfig(base_url=sys.argv[1], model="test-model", batch_size=2, concurrency=2)
embedder = EndpointEmbedder(config, log=Path(sys.argv[2]))
texts = [f"ayat {number}" for number in range(int(sys.argv[3]))]
embedder.embed(texts, role="passage")
print(embedder.counts["cache_hits"])
"""


def test_a_killed_call_asks_nothing_twice(server: EndpointServer, tmp_path: Path, repo: Path) -> None:
    server.delay_s = 0.01
    command = [sys.executable, "-c", RUN, server.url, str(tmp_path), "160"]
    process = subprocess.Popen(command, cwd=repo)
    while len(server.asked) < 30:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    answered = (tmp_path / "vectors.jsonl").read_bytes().count(b"\n")
    again = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True)
    assert answered >= 27 and int(again.stdout) >= answered - 1  # the probe is asked, or found, too
    texts = [text for asked in server.asked for text in asked.body["input"] if text.startswith("ayat")]
    assert len(set(texts)) == 160 and len(texts) <= 160 + 2 * 2


def test_the_log_holds_one_call_at_a_time(server: EndpointServer, make: Make, tmp_path: Path) -> None:
    path = tmp_path / "vectors.jsonl"
    embedder = make(log=tmp_path, fields={"price_in": 1.0})
    embedder.embed(TEXTS[:25], role="passage")
    first = path.stat().st_size
    embedder.embed(TEXTS[25:], role="passage")
    assert path.stat().st_size < 1.5 * first
    spent = embedder.counts["cost"]
    del embedder
    assert make(log=tmp_path, fields={"price_in": 1.0})._endpoint._account.spent == pytest.approx(spent)


def test_stored_vectors_are_paid_once(server: EndpointServer, make: Make, tmp_path: Path) -> None:
    items = [(content_id(text), text) for text in TEXTS]
    stored = embed_texts(items, make(), role="passage", folder=tmp_path / "a", cache=tmp_path / "cache")
    asked = len(server.asked)
    np.testing.assert_allclose(stored.read(0, 50), expected(TEXTS), atol=1e-3)  # stored as float16
    again = embed_texts(items, make(), role="passage", folder=tmp_path / "b", cache=tmp_path / "cache")
    assert np.array_equal(again.read(0, 50), stored.read(0, 50))
    assert len(server.asked) == asked + 1  # the dimension
