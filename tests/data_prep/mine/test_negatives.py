"""Negatives for pairs that are there already, the last judges, and what the audit says of false negatives."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.corpus.keys import text_key
from data_prep.embed.teacher import TeacherConfig, load_teacher
from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.mine.config import CrossEncoderConfig, MineConfig
from data_prep.mine.false_negatives import wilson
from data_prep.mine.mine import mine_pairs
from data_prep.mine.negatives import add_negatives
from data_prep.mine.pair_texts import pair_facts
from data_prep.mine.policy import RULES, Policy
from data_prep.mine.select import mine_queries
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.text_store import document_hash

TEACHER = TeacherConfig(dimension=12)
NEAR: dict[str, Any] = {
    "negative_ranks": [1, 40],
    "without": ["near_copy", "max_score", "ratio", "margin", "duplicate"],
}


class Notes(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def place(tmp_path: Path, topics: Any) -> Path:
    """160 documents, two of them of one document each, and labelled pairs: a document's first half asks for another."""
    texts = topics(160)
    with ShardWriter(tmp_path / "documents", "documents") as writer:
        for number, text in enumerate(texts):
            row = {"id": content_id(text), "text": text, "source": "test", "language": "ms"}
            writer.append({**row, "document": f"d{number % 80}"})
    with ShardWriter(tmp_path / "pairs", "pairs") as writer:
        for number in range(0, 120, 4):
            question = " ".join(texts[number].split()[3:15])
            positives = [texts[number], texts[number + 8]][: 1 + number % 8 // 4]
            had = [texts[(number + 50) % 160]] if number % 3 == 0 else []
            writer.append(pair_row(question, positives, had, "labelled", "ms", query_document=f"d{number % 80}"))
    return tmp_path


def _add(place: Path, name: str = "out", **given: Any) -> dict[str, int | float]:
    policy = Policy(**{**NEAR, **given.pop("policy", {})})
    return add_negatives(
        place / "pairs", documents=place / "documents", policy=policy, teacher=TEACHER, out=place / name, **given
    )


def test_pairs_keep_what_they_have_and_get_negatives(place: Path) -> None:
    counts = _add(place, policy={"negatives_per_query": 3, "sampling": "hardest"})
    before, after = list(Shards(place / "pairs", "pairs")), list(Shards(place / "out" / "pairs", "pairs"))
    documents = list(Shards(place / "documents", "documents"))
    teacher = load_teacher(place / "out" / "teacher")
    vectors = teacher.embed([d["text"] for d in documents], role="passage").astype(np.float64)
    assert len(after) == len(before) == counts["pairs"]
    for old, new in zip(before, after, strict=True):
        for name in ("query", "positives", "positive_ids", "source", "language", "query_document"):
            assert new[name] == old[name]
        had = len(old["negatives"])
        assert new["negatives"][:had] == old["negatives"]
        scores = vectors @ teacher.embed([old["query"]], role="query")[0].astype(np.float64)
        own = {old["query_document"], *(d["document"] for d in documents if d["text"] in old["positives"])}
        order = [documents[n] for n in np.argsort(-scores, kind="stable")[:40]]
        wanted = [d["text"] for d in order if d["document"] not in own and d["text"] not in old["positives"]][:3]
        assert new["negatives"][had:] == wanted
        name_of = {d["text"]: d["document"] for d in documents}
        given = [None] * had + [name_of[text] for text in wanted]
        assert new["negative_documents"] == (None if had else given)
        place_of = {d["text"]: n for n, d in enumerate(documents)}
        assert np.allclose(new["positive_scores"], [scores[place_of[t]] for t in new["positives"]], atol=1e-5)
        assert (new["negative_scores"] is None) == bool(had)
    assert counts["skipped_negative_same_document"] > 0 and (place / "out" / "audit.json").exists()
    assert not (place / "out" / ".scratch").exists()


def test_pairs_are_read_again_and_not_held(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def counting(*given: Any, **more: Any) -> Any:
        gc.collect()
        held.append(sum(type(one) is dict and "positive_ids" in one for one in gc.get_objects()))
        return mine_queries(*given, **more)

    monkeypatch.setattr("data_prep.mine.negatives.mine_queries", counting)
    assert _add(place)["pairs"] == 30 and held[0] <= 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.data())
def test_texts_of_pairs_are_those_of_a_list(tmp_path: Path, counts: list[int], data: st.DataObject) -> None:
    folder = tmp_path / content_id(str(counts))
    texts = [[f"teks {n} {i}" for i in range(count)] for n, count in enumerate(counts)]
    with ShardWriter(folder, "pairs", rows_per_file=7) as writer:
        for number, positives in enumerate(texts):
            documents = [f"d{number}", None, "x", "y"][: len(positives)] if number % 2 else None
            writer.append(pair_row(f"q{number}", positives, [], "s", "en", positive_documents=documents))
    facts, flat = pair_facts(Shards(folder, "pairs")), [text for some in texts for text in some]
    assert list(facts.positives) == flat and facts.counts.tolist() == counts and len(facts.queries) == len(counts)
    assert list(facts.positive_ids) == [content_id(text) for text in flat]
    assert facts.ids == [content_id(text) for text in facts.queries]
    assert facts.positive_documents.tolist() == [
        0 if n % 2 == 0 or i == 1 else document_hash([f"d{n}", "", "x", "y"][i])
        for n, some in enumerate(texts) for i in range(len(some))
    ]  # fmt: skip
    one, other = (data.draw(st.integers(-len(flat) - 2, len(flat) + 2)) for _ in range(2))
    assert facts.positives[one:other] == flat[one:other] and facts.positives[::-2] == flat[::-2]
    numbers = data.draw(st.lists(st.integers(0, len(flat) - 1), max_size=12))
    assert facts.positives.pick(np.array(numbers, dtype=np.int64)) == [flat[n] for n in numbers]
    assert [facts.positives[n] for n in (0, -1)] == [flat[0], flat[-1]]
    with pytest.raises(IndexError):
        facts.positives[len(flat)]


def test_a_pair_without_a_positive_is_named(place: Path) -> None:
    with ShardWriter(place / "pairs", "pairs") as writer:
        writer.append({**pair_row("apa khabar", ["baik"], [], "s", "ms"), "positives": []})
    with pytest.raises(UserError, match="query 'apa khabar': has no positive"):
        _add(place)


def test_pairs_without_enough_negatives_are_dropped_and_all_vetoed_names_the_rule(place: Path) -> None:
    counts = _add(place, policy={"min_negatives": 4, "negative_ranks": [1, 5]})
    assert 0 < counts["pairs"] < 30 and counts["refused_few_negatives"] > 0
    with pytest.raises(UserError, match=r"candidates for negatives: every one was vetoed") as caught:
        _add(place, "none", policy={"without": [], "negative_max_score": -1.0})
    assert "negative_max_score (raise it)" in caught.value.fix


def test_mining_says_when_every_negative_was_vetoed(place: Path) -> None:
    progress = Notes()
    policy: dict[str, Any] = {"negative_ranks": [1, 40], "negative_max_score": -1.0}
    mine = {"documents": place / "documents", "seed": 0, "progress": progress}
    counts = mine_pairs(MineConfig(teacher=TEACHER, policy=Policy(**policy)), out=place / "mine", **mine)
    assert counts["pairs"] == counts["without_negatives"] > 0
    assert any("every one was vetoed" in line and "negative_max_score" in line for line in progress.said)
    with pytest.raises(UserError, match="min_negatives = 1: refuses all"):
        mine_pairs(MineConfig(teacher=TEACHER, policy=Policy(**policy, min_negatives=1)), out=place / "mine1", **mine)


def test_a_second_teacher_must_agree(place: Path) -> None:
    second = TeacherConfig(dimension=8, analyzer="char_wb")
    plain = _add(place, "plain", policy={"negatives_per_query": 6})
    both = _add(place, "both", policy={"negatives_per_query": 6, "agreement_ratio": 0.7}, second_teacher=second)
    assert both["skipped_negative_second_teacher"] > 0 and "skipped_negative_second_teacher" in plain
    judge = load_teacher(place / "both" / "second_teacher")
    for row in Shards(place / "both" / "pairs", "pairs"):
        asked = judge.embed([row["query"]], role="query")[0]
        ceiling = 0.7 * min(judge.embed(row["positives"], role="passage") @ asked)
        had = len(row["negatives"]) - 6
        mined = row["negatives"][max(0, had) :]
        assert all(score <= ceiling + 1e-5 for score in judge.embed(mined, role="passage") @ asked)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of two tiny layers with random weights."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("reranker")
    letters = [chr(97 + n) for n in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_labels=1, initializer_range=0.6,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    CrossEncoder(str(folder)).save_pretrained(str(folder))
    return folder


def test_a_cross_encoder_vetoes_what_it_finds_relevant(place: Path, reranker: Path) -> None:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(reranker), max_length=64)
    rows = list(Shards(place / "pairs", "pairs"))
    documents = Shards(place / "documents", "documents").column("text")
    scores = model.predict([(row["query"], text) for row in rows[:8] for text in documents], show_progress_bar=False)
    middle, margin = float(np.quantile(scores, 0.7)), 0.1 * float(np.std(scores))
    config = CrossEncoderConfig(model=str(reranker), max_score=middle, max_tokens=64, margin=margin)
    counts = _add(place, policy={"negatives_per_query": 5}, cross_encoder=config)
    assert counts["skipped_negative_cross_encoder"] > 0
    found = 0
    for old, new in zip(rows, Shards(place / "out" / "pairs", "pairs"), strict=True):
        mined = new["negatives"][len(old["negatives"]) :]
        if mined:
            judged = model.predict([(old["query"], text) for text in mined], show_progress_bar=False)
            best = model.predict([(old["query"], old["positives"][0])], show_progress_bar=False)[0]
            assert max(judged) < middle + 1e-6 and max(judged) <= best - margin + 1e-6
            found += len(mined)
    assert found > 20
    with pytest.raises(UserError, match=r"cross_encoder.model = 'nowhere': cannot be loaded"):
        _add(place, "bad", cross_encoder=CrossEncoderConfig(model="nowhere"))


def test_wilson_interval() -> None:
    assert wilson(15, 148)["low"] == pytest.approx(0.0624, abs=1e-4)
    assert wilson(15, 148)["high"] == pytest.approx(0.1605, abs=1e-4)
    assert wilson(0, 50)["low"] == 0 and wilson(0, 50)["high"] == pytest.approx(0.0713, abs=1e-4)
    assert wilson(50, 50)["high"] == 1 and wilson(0, 0)["high"] == 1


def test_false_negatives_are_found_where_they_are_planted(tmp_path: Path, topics: Any) -> None:
    """Each text has a retelling of which a label knows; a policy without rules takes them, one with rules does not."""
    texts = topics(120)
    retold = [f"{text} Tamat." for text in texts]
    with ShardWriter(tmp_path / "documents", "documents") as writer:
        for text in [*texts, *retold]:
            writer.append({"id": content_id(text), "text": text, "source": "test", "language": "ms"})
    with ShardWriter(tmp_path / "labelled", "pairs") as writer:
        for one, other in zip(texts, retold, strict=True):
            writer.append(pair_row(one, [other], [], "labelled", "ms"))
    audits = {}
    for name, without in (("careless", list(RULES)), ("careful", [])):
        policy = Policy(
            negative_ranks=[1, 60], negatives_per_query=2, sampling="hardest", without=without, duplicate_score=0.9999
        )
        config = MineConfig(teacher=TEACHER, neighbors=60, policy=policy)
        (tmp_path / name).mkdir()
        counts = mine_pairs(
            config, documents=tmp_path / "documents", out=tmp_path / name, seed=0, progress=Progress(),
            labelled=[tmp_path / "labelled"],
        )  # fmt: skip
        audits[name] = json.loads((tmp_path / name / "audit.json").read_text())["false_negatives"]
        rows = list(Shards(tmp_path / name / "pairs", "pairs"))
        partner = dict(zip(texts + retold, retold + texts, strict=True))
        hits = sum(text_key(partner[row["query"]]) in map(text_key, row["negatives"]) for row in rows)
        assert audits[name]["known"]["per_negative"]["hits"] == hits
        assert audits[name]["known"]["per_negative"]["trials"] == counts["negatives"]
    careless, careful = (audits[name]["hidden"]["per_query"] for name in ("careless", "careful"))
    assert careless["rate"] > 0.3 and careless["low"] > careful["high"] and careful["rate"] < 0.05
    assert careless["low"] < careless["rate"] <= careless["high"] and audits["careless"]["labelled_pairs"] == 120
