from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_prep.corpus.keys import text_key
from data_prep.embed.teacher import TeacherConfig, load_teacher
from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.mine.config import MineConfig
from data_prep.mine.mine import mine_pairs
from data_prep.mine.policy import Policy
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter

BASE: dict[str, Any] = {
    "teacher": TeacherConfig(dimension=12),
    "neighbors": 40,
}
POLICY: dict[str, Any] = {"negative_ranks": [5, 40], "without": ["near_copy"]}


def _config(**given: Any) -> MineConfig:
    policy = {name: given.pop(name) for name in list(given) if name in Policy.model_fields}
    return MineConfig(**{**BASE, **given, "policy": Policy(**{**POLICY, **policy})})


def _mine(folder: Path, name: str = "mine", *, seed: int = 0, **config: Any) -> dict[str, int | float]:
    return mine_pairs(
        _config(**config), documents=folder / "documents", out=folder / name, seed=seed, progress=Progress()
    )


@pytest.fixture
def corpus(tmp_path: Path, write_documents: Any, topics: Any) -> Path:
    texts = topics(160)
    texts.append(texts[0] + " Sambungan.")  # a near copy
    texts.append("zzz yyy xxx")  # no word that the teacher knows
    (tmp_path / "mine").mkdir()
    write_documents(tmp_path / "documents", texts)
    return tmp_path


def test_every_row_keeps_the_rules(corpus: Path) -> None:
    counts = _mine(corpus, positives_per_query=2, negatives_per_query=3)
    rows = list(Shards(corpus / "mine" / "pairs", "pairs"))
    texts = Shards(corpus / "documents", "documents").column("text")
    teacher = load_teacher(corpus / "mine" / "teacher")
    vectors = teacher.embed(texts, role="passage").astype(np.float64)
    place = {text: n for n, text in enumerate(texts)}
    assert len(rows) == counts["pairs"] > 100 and counts["zero_vectors"] == 1
    assert any(row["negatives"] for row in rows)
    for row in rows:
        query = place[row["query"]]
        cosines = vectors @ vectors[query]
        for name in ("positive", "negative"):
            expected = [cosines[place[t]] for t in row[f"{name}s"]]
            assert np.allclose(row[f"{name}_scores"], expected, atol=1e-6)
        assert all(0.6 <= s < 0.98 for s in row["positive_scores"]) and 1 <= len(row["positives"]) <= 2
        ceiling = min(0.9, 0.95 * min(row["positive_scores"]))
        assert all(s <= ceiling + 1e-6 for s in row["negative_scores"]) and len(row["negatives"]) <= 3
        everything = [row["query"], *row["positives"], *row["negatives"]]
        assert len(set(map(text_key, everything))) == len(everything)
        ranks = {int(n): r for r, n in enumerate(np.argsort(-cosines, kind="stable"))}
        assert all(5 <= ranks[place[t]] <= 40 for t in row["negatives"])
        # The positives are the nearest documents that are no copies.
        nearest = [n for n in np.argsort(-cosines, kind="stable") if n != query and cosines[n] < 0.98]
        assert [place[t] for t in row["positives"]] == nearest[: len(row["positives"])]


def test_audit_tells_what_happened(corpus: Path) -> None:
    counts = _mine(corpus)
    audit = json.loads((corpus / "mine" / "audit.json").read_text())
    assert audit["counts"] == counts and audit["policy"]["policy"]["positive_min_score"] == 0.6
    assert sum(audit["positive_scores"]) == counts["positives"] and sum(audit["negative_scores"]) == counts["negatives"]
    assert len(audit["histogram_edges"]) == len(audit["positive_scores"]) + 1
    assert list(audit["examples"]) == ["test"] and len(audit["examples"]["test"]) == 50
    assert audit["examples"]["test"][0]["positives"]
    assert any("at most 0.95 of the worst positive" in sentence for sentence in audit["policy_in_words"])
    assert sum(sum(bins["negative_scores"]) for bins in audit["by_language"].values()) == counts["negatives"]
    rules = audit["rules"]
    assert set(rules["alone"]) <= set(rules["in_order"])
    assert all(rules["alone"][name] >= rules["in_order"][name] for name in rules["alone"])
    assert audit["hubness"]["texts_used"] <= counts["negatives"] and audit["hubness"]["most_used"][0]["uses"] >= 1
    assert counts["skipped_duplicate"] >= 2  # the near copy, seen from both sides


def test_same_seed_same_bytes_and_the_backends_agree(corpus: Path) -> None:
    for name, config in (("a", {}), ("b", {}), ("c", {"backend": "kdtree"}), ("d", {"seed": 1})):
        (corpus / name).mkdir()
        _mine(corpus, name, **config)
    prints = [Shards(corpus / n / "pairs", "pairs").fingerprint for n in "abcd"]
    assert prints[0] == prints[1] == prints[2] != prints[3]
    assert (corpus / "a" / "audit.json").read_bytes() == (corpus / "b" / "audit.json").read_bytes()


def test_rows_name_the_documents_that_their_texts_are_parts_of(tmp_path: Path, topics: Any) -> None:
    with ShardWriter(tmp_path / "documents", "documents") as writer:
        for number, text in enumerate(topics(160)):
            document = f"d{number % 40}" if number % 5 else None
            row = {"id": content_id(text), "text": text, "source": "test", "language": "ms"}
            writer.append({**row, "document": document})
    _mine(tmp_path)
    name = {row["text"]: row["document"] or row["id"] for row in Shards(tmp_path / "documents", "documents")}
    rows = list(Shards(tmp_path / "mine" / "pairs", "pairs"))
    assert any(row["negatives"] for row in rows) and any(row["query_document"].startswith("d") for row in rows)
    for row in rows:
        assert row["query_document"] == name[row["query"]]
        for side in ("positive", "negative"):
            assert row[f"{side}_documents"] == [name[text] for text in row[f"{side}s"]]
        assert not {row["query_document"], *row["positive_documents"]} & {*row["negative_documents"]}


@pytest.mark.parametrize("ranks", [True, False])
def test_first_line_as_query(corpus: Path, ranks: bool) -> None:
    window = {} if ranks else {"negative_percentiles": [50.0, 100.0], "negative_ranks": None}
    counts = _mine(corpus, query="first_line", positive_min_score=0.2, **window)
    rows = list(Shards(corpus / "mine" / "pairs", "pairs"))
    assert counts["queries"] < counts["documents"] + counts["zero_vectors"]  # one document has no second line
    assert rows and all(row["query"].startswith("Perihal") and "\n" not in row["query"] for row in rows)
    # Neither its own document, nor the near copy that has the same first line, is an answer to a title.
    others = [
        text for row in rows for text in (*row["positives"], *row["negatives"]) if text.startswith(row["query"] + "\n")
    ]
    assert others == [] and counts["skipped_same_text"] > 0


def test_first_lines_of_a_word_or_two_are_no_queries(tmp_path: Path, write_documents: Any, topics: Any) -> None:
    """They may stand in a document though they are a whole evaluation query; as a query they would fail the run."""
    texts = topics(160)
    for number in range(0, 80, 2):
        texts[number] = f"{('Sumber:', 'Harga minyak')[number % 4 // 2]}\n{texts[number].partition(chr(10))[2]}"
    write_documents(tmp_path / "documents", texts)
    counts = _mine(tmp_path, query="first_line", positive_min_score=0.2)
    rows = list(Shards(tmp_path / "mine" / "pairs", "pairs"))
    assert counts["queries"] == 120 and all(len(row["query"].split()) >= 3 for row in rows)
    write_documents(tmp_path / "short" / "documents", [f"Sumber:\n{text}" for text in topics(60)])
    with pytest.raises(UserError, match="leaves no query: no document has a first line of three words"):
        _mine(tmp_path / "short", query="first_line")


def test_caps(corpus: Path) -> None:
    counts = _mine(corpus, max_documents=100, max_queries=20, negatives_per_query=0)
    assert counts["documents"] + counts["zero_vectors"] == 100 and counts["queries"] == 20
    assert counts["negatives"] == 0 and counts["without_negatives"] == counts["pairs"]


def test_zero_pairs_name_the_best_score_and_the_setting(corpus: Path) -> None:
    found = _mine(corpus, "first", max_queries=10)["best_score"]
    with pytest.raises(UserError, match=r"mine.policy.positive_min_score = .*the best score is 0\.\d+") as caught:
        _mine(corpus, positive_min_score=found + 0.0001, max_queries=10)
    best = float(str(caught.value).split("best score is ")[1].split(")")[0])
    assert abs(best - found) <= 0.0001
    assert _mine(corpus, "again", positive_min_score=best, max_queries=10)["pairs"] > 0  # the advice works
    assert not (corpus / "mine" / "pairs" / "manifest.json").exists()
    with pytest.raises(UserError, match=r"mine.policy.duplicate_score = -0.9"):
        _mine(corpus, "x", duplicate_score=-0.9)
    with pytest.raises(UserError, match=r"mine.policy.min_negatives = 4"):
        _mine(corpus, "y", min_negatives=4, negative_max_ratio=0.01)


def test_too_few_documents(corpus: Path, write_documents: Any, topics: Any) -> None:
    with pytest.raises(
        UserError,
        match=r"mine.neighbors = 40, mine.policy.negative_ranks = \[5, 40\]: needs at least 41 documents, there are 30",
    ):
        _mine(corpus, max_documents=30)
    write_documents(corpus / "few" / "documents", [*topics(35), *(f"unik{n}" for n in range(20))])
    with pytest.raises(UserError, match="knows words of only 35 of them"):
        _mine(corpus / "few")


@pytest.mark.parametrize(
    "bad",
    [
        {"negative_ranks": [41, 40]},
        {"negative_ranks": [0, 40]},
        {"negative_ranks": [40]},
        {"negative_percentiles": [50.0, 101.0]},
        {"negative_distances": [0.9], "negative_scores": [0.1, 0.2]},
        {"negatives_per_query": -1},
        {"max_queries": -5},
        {"positive_min_score": 1.5},
        {"negative_max_ratio": 0.0},
        {"min_negatives": 9},
        {"without": ["everything"]},
        {"preset": "hard"},
        {"paper_corpus": "twitter"},
        {"backend": "annoy"},
        {"views": True, "query": "first_line"},
    ],
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _config(**bad)
