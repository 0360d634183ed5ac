"""The demo corpus: reproducible, honest about what is held out, and hard for word matching."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data_prep.demo.facts import SLOTS, held_out_pairs, training_pairs
from data_prep.demo.generate import KINDS, QUESTION_MARKS, GenerateConfig, generate_demo
from data_prep.demo.lexicon import REGISTERS, ROLES, load_lexicon
from data_prep.demo.text import VOICES, slots_of
from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.progress import Progress

SMALL = GenerateConfig(documents=1500, evaluation_documents=900, evaluation_queries=300, translation_queries=150)
WORD = re.compile(r"[\w'-]+")


def generate(folder: Path, *, seed: int = 0, config: GenerateConfig = SMALL) -> Path:
    folder.mkdir(parents=True)
    generate_demo(config, out=folder, seed=seed, progress=Progress())
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("demo") / "out")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def training_texts(folder: Path) -> list[str]:
    return [row["text"] for kind in KINDS for row in rows(folder / "corpora" / f"demo_{kind}.jsonl.gz")]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@cache
def flat(text: str) -> str:
    return f" {' '.join(WORD.findall(text.lower()))} "


@cache
def bare(phrase: str) -> str:
    return flat(re.sub(r"^(the|an|a) ", "", phrase.lower()))


def says(text: str, variants: tuple[str, ...]) -> bool:
    """Whether the text holds one of the phrases, as whole words; mixed speech leaves out the English article."""
    return any(bare(variant) in flat(text) for variant in variants)


def phrases(concept: object) -> tuple[str, ...]:
    return tuple(v for variants in concept.variants.values() for v in variants)  # type: ignore[attr-defined]


def test_same_seed_same_bytes(made: Path, tmp_path: Path) -> None:
    assert digests(generate(tmp_path / "again")) == digests(made)
    other = digests(generate(tmp_path / "other", seed=1))
    assert not set(other.values()) & set(digests(made).values())


def test_counts_and_layout(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    counts = generate_demo(SMALL, out=tmp_path / "out", seed=0, progress=Progress())
    texts = training_texts(made)
    assert counts["documents"] == len(texts) == len(set(texts)) == 1500
    assert counts["evaluation_documents"] == 900
    assert counts["evaluation_queries"] == 450
    assert counts["topics"] >= 12
    for kind in KINDS:
        for row in rows(made / "corpora" / f"demo_{kind}.jsonl.gz"):
            assert set(row) == {"id", "text", "source", "lang"}
            assert row["source"] == f"demo_{kind}"
            assert row["lang"] in ("ms", "en")


def test_retold_facts_are_documents_of_the_corpus(made: Path) -> None:
    texts = set(training_texts(made))
    retold = rows(made / "relevance" / "same_fact.jsonl.gz")
    assert len(retold) > 100
    told = [text for row in retold for text in (row["query"], *row["positives"])]
    assert set(told) <= texts and len(told) == len(set(told))  # a document tells one fact
    assert all(row["positives"] for row in retold)


def test_title_question_and_answer_lines(made: Path) -> None:
    marks = tuple(mark for group in QUESTION_MARKS.values() for mark in group)
    for kind in KINDS:
        asked = 0
        for row in rows(made / "corpora" / f"demo_{kind}.jsonl.gz"):
            title, *rest = row["text"].split("\n")
            questions = [line for line in rest if line.startswith(marks)]
            answers = [line for line in rest if not line.startswith(marks)]
            assert title and not title.startswith(marks)
            assert len(questions) <= 1
            assert answers and all(answers)
            assert rest[-1] not in questions
            asked += len(questions)
        total = len(rows(made / "corpora" / f"demo_{kind}.jsonl.gz"))
        assert asked == {"forum": total, "bilingual": 0}.get(kind, asked)
        assert asked < total or kind == "forum"


def test_held_out_combinations_cover_every_concept_twice() -> None:
    lexicon = load_lexicon()
    held_out = held_out_pairs(lexicon, np.random.default_rng(3))
    kept = training_pairs(lexicon, held_out)
    assert not set(held_out) & set(kept)
    for topic, words in enumerate(lexicon.topics):
        assert {(t, s) for t, s, _ in kept if t == topic} == {(topic, s) for s in range(len(words.slots["S"]))}
        assert {(t, p) for t, _, p in kept if t == topic} == {(topic, p) for p in range(len(words.slots["P"]))}


def test_no_evaluation_fact_is_in_training_text_in_any_wording(made: Path) -> None:
    """Read from the texts alone: a subject and a problem of one evaluation document never meet in a training text."""
    lexicon = load_lexicon()
    train = training_texts(made)
    said = {
        (t, slot, i): {n for n, text in enumerate(train) if says(text, phrases(concept))}
        for t, topic in enumerate(lexicon.topics)
        for slot in ("S", "P")
        for i, concept in enumerate(topic.slots[slot])
    }
    found = set()
    for document in load_set(made / "eval_dev" / "demo_questions").documents:
        for t, topic in enumerate(lexicon.topics):
            subjects = [i for i, c in enumerate(topic.slots["S"]) if says(document, phrases(c))]
            problems = [i for i, c in enumerate(topic.slots["P"]) if says(document, phrases(c))]
            if len(subjects) == len(problems) == 1:
                found.add((t, subjects[0], problems[0]))
    assert len(found) > 100
    for t, s, p in found:
        assert not said[t, "S", s] & said[t, "P", p], (lexicon.topics[t].key, s, p)
        assert said[t, "S", s] and said[t, "P", p]


def test_evaluation_shares_no_run_of_eight_words_with_training(made: Path) -> None:
    def runs(texts: list[str]) -> set[tuple[str, ...]]:
        split = [WORD.findall(text.lower()) for text in texts]
        return {tuple(w[i : i + 8]) for w in split for i in range(len(w) - 7)}

    trained = runs(training_texts(made))
    for name in ("demo_questions", "demo_translation"):
        loaded = load_set(made / "eval_dev" / name)
        for text in [*loaded.documents, *loaded.queries]:
            own = runs([text])
            assert len(own & trained) <= 0.1 * len(own) + 2, text


def test_relevance_follows_from_the_words(made: Path) -> None:
    """Every relevant document tells the asked subject and problem, and some document tells them and is not relevant."""
    lexicon = load_lexicon()
    loaded = load_set(made / "eval_dev" / "demo_questions")
    texts = dict(zip(loaded.document_ids, loaded.documents, strict=True))
    near_misses = 0
    for ident, query in zip(loaded.query_ids, loaded.queries, strict=True):
        relevant = loaded.relevant["all"][ident]
        assert 1 <= len(relevant) < 10
        candidates = [
            [phrases(topic.slots[slot][i]) for slot, i in (("S", s), ("P", p))]
            for topic in lexicon.topics
            for s, subject in enumerate(topic.slots["S"])
            if says(query, phrases(subject))
            for p, problem in enumerate(topic.slots["P"])
            if says(query, phrases(problem))
        ]
        assert candidates, query
        matching = [both for both in candidates if all(says(texts[d], v) for d in relevant for v in both)]
        assert matching, (query, [texts[d] for d in relevant])
        near_misses += any(d not in relevant and all(says(text, v) for v in matching[0]) for d, text in texts.items())
    assert near_misses > 0.95 * len(loaded.queries)


def test_query_ids_name_the_kind(made: Path) -> None:
    loaded = load_set(made / "eval_dev" / "demo_questions")
    kinds = [ident.split("-")[0] for ident in loaded.query_ids]
    assert set(kinds) == set(VOICES)
    assert min(kinds.count(voice) for voice in VOICES) > 0.15 * len(kinds)
    assert all(i.startswith("english-") for i in load_set(made / "eval_dev" / "demo_translation").query_ids)


def test_word_matching_is_neither_useless_nor_enough(made: Path) -> None:
    import bm25s

    loaded = load_set(made / "eval_dev" / "demo_questions")
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([t.lower() for t in loaded.documents], stopwords=None, show_progress=False), show_progress=False
    )
    tokens = bm25s.tokenize([q.lower() for q in loaded.queries], stopwords=None, show_progress=False)
    found, _ = index.retrieve(tokens, k=10, show_progress=False)
    hits = [
        len({loaded.document_ids[int(i)] for i in row} & loaded.relevant["all"][q]) / len(loaded.relevant["all"][q])
        for q, row in zip(loaded.query_ids, found, strict=True)
    ]
    assert 0.1 < sum(hits) / len(hits) < 0.55


def test_too_many_queries_for_the_documents(tmp_path: Path) -> None:
    config = GenerateConfig(evaluation_documents=1000, evaluation_queries=501, translation_queries=100)
    with pytest.raises(UserError, match=r"evaluation_queries = 501.*at most 1/2.*1002 or more"):
        generate_demo(config, out=tmp_path, seed=0, progress=Progress())
    config = GenerateConfig(evaluation_documents=1000, evaluation_queries=400, translation_queries=400)
    with pytest.raises(UserError, match=r"translation_queries = 400.*at most 1/3.*1200 or more"):
        generate_demo(config, out=tmp_path, seed=0, progress=Progress())
    assert not list(tmp_path.iterdir())


def test_lexicon_is_sound() -> None:
    lexicon = load_lexicon()
    for topic in lexicon.topics:
        for slot, concepts in topic.slots.items():
            for concept in concepts:
                assert set(concept.variants) == set(REGISTERS)
                assert all(v and v == v.strip() for v in phrases(concept))
            for register in REGISTERS:
                said = [v for concept in concepts for v in concept.variants[register]]
                assert len(said) == len(set(said)), (topic.key, slot, register)
        assert all(v.startswith("the ") for c in topic.slots["S"] for v in c.variants["english"])
        every = [
            (slot, i, v)
            for slot, cs in {**topic.slots, **lexicon.shared}.items()
            for i, c in enumerate(cs)
            for v in phrases(c)
        ]
        inside = [(v, w) for slot, i, v in every for other, j, w in every if (slot, i) != (other, j) and says(w, (v,))]
        assert not inside, f"{topic.key}: ambiguous {inside}"
        assert all(re.match(r"(me|minum|ber)", v) for c in topic.slots["A"] for v in c.variants["formal"])


def test_evaluation_sentences_are_new_and_their_words_are_not() -> None:
    templates = load_lexicon().templates
    for register in REGISTERS:
        split = {s: [t for role in ROLES for t in templates[s, register, role]] for s in ("train", "eval")}
        assert not set(split["train"]) & set(split["eval"])
        words = {s: {w for t in ts for w in WORD.findall(re.sub(r"\{.\}", " ", t).lower())} for s, ts in split.items()}
        assert words["eval"] <= words["train"], (register, words["eval"] - words["train"])
        assert all(set(slots_of(t)) <= set(SLOTS) for ts in split.values() for t in ts)
        assert all({"S", "P"} < set(slots_of(t)) for t in templates["eval", register, "question"])
