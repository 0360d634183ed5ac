"""What is measured against loops over queries, counts that must add up, and what breaks the measurement."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.evaluation_sets import EvaluationSet, load_set
from data_prep.progress import Progress
from eval.robustness.config import NAMES, RobustnessConfig
from eval.robustness.counterfactual import auroc
from eval.robustness.drawn import ask, draw, outside_of
from eval.robustness.kinds import KINDS
from eval.robustness.measure import measure
from eval.robustness.remember import Remembering
from eval.robustness.results import check
from eval.systems.dense import DenseRanker
from tests.eval.robustness.planted import LetterRanker, WordRanker, system, write_set

STRENGTHS = [0.3, 1.0]


def config(**changed: Any) -> RobustnessConfig:
    return RobustnessConfig(**{"strengths": STRENGTHS, "queries_per_set": 9, "bootstrap_samples": 200} | changed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sets")
    return [write_set(root / "alpha", seed=1), write_set(root / "beta", seed=2, documents=14, queries=6)]


@pytest.fixture(scope="module")
def results(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    systems = [system("words", WordRanker()), system("letters", LetterRanker())]
    measure(config(), sets=folders, systems=systems, out=out, seed=4, progress=Progress())
    made: dict[str, Any] = json.loads((out / "robustness.json").read_text())
    return made


def row(results: dict[str, Any], system: str, kind: str, strength: float) -> dict[str, Any]:
    (found,) = [r for r in results["rows"] if (r["system"], r["kind"], r["strength"]) == (system, kind, strength)]
    return found


def recall_by_hand(folders: list[Path], kind: str, strength: float) -> tuple[float, float, int]:
    """Clean and damaged recall@10 of shared words, and the number of changed queries, by loops from the definition."""
    clean, damaged, changed = [], [], 0
    for folder in folders:
        drawn = draw(load_set(folder), count=9, seed=4)
        sums = [0.0, 0.0]
        for query, ident, relevant in zip(drawn.queries, drawn.query_ids, drawn.relevant, strict=True):
            made = KINDS[kind](query, strength, seed=4, key=ident)
            changed += made.text != query
            for i, text in enumerate((query, made.text)):
                shared = [len(set(d.split()) & set(text.split())) for d in drawn.documents]
                order = sorted(range(len(shared)), key=lambda d: (-shared[d], d))
                sums[i] += len(relevant & set(order[:10])) / len(relevant)
        clean.append(sums[0] / len(drawn.queries))
        damaged.append(sums[1] / len(drawn.queries))
    return float(np.mean(clean)), float(np.mean(damaged)), changed


@pytest.mark.parametrize("kind", ["typo_swap", "case_upper", "homoglyphs", "cut_query", "switch_to_malay"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_recall_is_what_loops_find(results: dict[str, Any], folders: list[Path], kind: str, strength: float) -> None:
    clean, damaged, changed = recall_by_hand(folders, kind, strength)
    found = row(results, "words", kind, strength)
    assert found["mean"] == pytest.approx(damaged, abs=1e-6)
    assert found["lost"] == pytest.approx(clean - damaged, abs=1e-6)
    assert (found["changed"], found["queries"]) == (changed, 15)


def test_the_file_has_the_agreed_shape(results: dict[str, Any]) -> None:
    assert {"seed", "sets", "kinds", "strengths", "metric", "rows"} <= set(results)
    assert (results["seed"], results["sets"], results["metric"]) == (4, ["alpha", "beta"], "recall@10")
    assert results["kinds"] == list(KINDS) and results["strengths"] == STRENGTHS
    keys = {"system", "kind", "strength", "queries", "changed", "mean", "low", "high", "lost", "lost_low", "lost_high"}
    assert all(set(r) == keys for r in results["rows"])
    assert len(results["rows"]) == 2 * len(KINDS) * 2


def test_nothing_changed_means_nothing_lost(results: dict[str, Any]) -> None:
    untouched = [r for r in results["rows"] if r["changed"] == 0]
    assert {"switch_to_malay", "case_lower"} <= {r["kind"] for r in untouched}
    assert all((r["lost"], r["lost_low"], r["lost_high"]) == (0, 0, 0) for r in untouched)
    counts = results["counts"]
    assert counts["asked"] == 15 * len(KINDS) * 2 == counts["changed"] + counts["unchanged"]


def test_intervals_are_paired(folders: list[Path], results: dict[str, Any]) -> None:
    found = row(results, "words", "typo_swap", 1.0)
    assert found["lost_low"] <= found["lost"] <= found["lost_high"]
    # every query loses everything: recall and loss vary as the clean recall does, and their sum not at all
    clean = next(r for r in results["clean"] if r["system"] == "words")
    assert clean["mean"] == pytest.approx(found["mean"] + found["lost"], abs=2e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r["rows"].pop(),
        lambda r: r["rows"][0].update(queries=14),
        lambda r: r["rows"][0].update(changed=16),
        lambda r: r["rows"][3].update(changed=r["rows"][3]["changed"] - 1),
        lambda r: r["counts"].update(unchanged=r["counts"]["unchanged"] + 1),
        lambda r: r["clean"].pop(),
    ],
)
def test_counts_that_do_not_add_up_are_refused(results: dict[str, Any], spoil: Any) -> None:
    check(results)
    spoiled = copy.deepcopy(results)
    spoil(spoiled)
    with pytest.raises(RuntimeError):
        check(spoiled)


def test_the_same_seed_gives_the_same_file_whatever_else_is_measured(folders: list[Path], tmp_path: Path) -> None:
    made = []
    for name, kinds, sets in (("a", ["typo_swap"], folders), ("b", ["emoji", "typo_swap"], folders[::-1])):
        (tmp_path / name).mkdir()
        measure(
            config(kinds=kinds), sets=sets, systems=[system("words", WordRanker())], out=tmp_path / name, seed=4,
            progress=Progress(),
        )  # fmt: skip
        found = json.loads((tmp_path / name / "robustness.json").read_text())
        made.append([r for r in found["rows"] if r["kind"] == "typo_swap"])
    assert made[0] == made[1]


def test_who_reads_the_passage_notices_and_who_does_not_gets_a_half(results: dict[str, Any]) -> None:
    found = {(r["system"], r["kind"], r["strength"]): r for r in results["noticed"]}
    for kind in ("number_swap", "negation_swap"):
        for strength in STRENGTHS:
            told = found["words", kind, strength]
            # queries share no number and no negation with the passage, so its copy scores the same
            assert (told["pairs"], told["tied"], told["mean"]) == (15, 15, 0.5)
            assert told["above"] + told["tied"] + told["below"] == told["pairs"]
            assert found["letters", kind, strength]["above"] == 15  # the lower index wins there, by its score


def test_a_reader_of_numbers_is_seen_as_one(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "gamma", seed=3)
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    for query in queries:
        query["text"] += f" RM{100 + int(query['_id'][1:])}"
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    measure(
        config(kinds=["number_swap", "negation_swap"]), sets=[folder], systems=[system("words", WordRanker())],
        out=tmp_path, seed=0, progress=Progress(),
    )  # fmt: skip
    made = json.loads((tmp_path / "robustness.json").read_text())
    told = {(r["kind"], r["strength"]): r["mean"] for r in made["noticed"]}
    assert told["number_swap", 1.0] == 1.0 and told["negation_swap", 1.0] == 0.5
    assert row(made, "words", "number_swap", 1.0)["lost"] == 0


def area(inside: NDArray[np.float32], outside: NDArray[np.float32]) -> float:
    """The part of all pairs in which the inside score is the higher, ties a half: by loops."""
    return sum((a > b) + 0.5 * (a == b) for a in inside.tolist() for b in outside.tolist()) / inside.size / outside.size


def test_separation_is_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    inside, outside = (np.round(rng.normal(m, 1, n), 1).astype(np.float32) for m, n in ((0.7, 40), (0, 60)))
    value, samples = auroc(inside, outside, samples=1500, rng=np.random.default_rng(1))
    assert value == pytest.approx(area(inside, outside), abs=1e-9)
    again = [area(rng.choice(inside, 40), rng.choice(outside, 60)) for _ in range(300)]
    assert samples.shape == (1500,)
    assert samples.mean() == pytest.approx(np.mean(again), abs=0.015)
    assert samples.std() == pytest.approx(np.std(again), rel=0.2)


def test_out_of_domain_is_told_for_each_set_and_needs_another(results: dict[str, Any], folders: list[Path]) -> None:
    rows = [r for r in results["out_of_domain"] if r["system"] == "words"]
    assert [(r["set"], r["inside"], r["outside"]) for r in rows] == [("alpha", 9, 6), ("beta", 6, 6), (None, 15, 12)]
    assert all(r["mean"] == 1.0 for r in rows)  # the sets share no word
    assert rows[2]["mean"] == pytest.approx(np.mean([r["mean"] for r in rows[:2]]))
    drawn = draw(load_set(folders[0]), count=9, seed=0)
    assert outside_of(drawn, [], seed=0) == []


def test_a_set_alone_is_told(folders: list[Path], tmp_path: Path) -> None:
    notes: list[str] = []

    class Heard(Progress):
        def note(self, line: str) -> None:
            notes.append(line)

    def run(kinds: list[str]) -> None:
        systems = [system("words", WordRanker())]
        measure(config(kinds=kinds), sets=folders[:1], systems=systems, out=tmp_path, seed=0, progress=Heard())

    run(["emoji", "out_of_domain"])
    assert len(notes) == 1 and "alpha" in notes[0]
    with pytest.raises(UserError, match="add a set"):
        run(["out_of_domain"])


def test_a_question_that_the_corpus_answers_is_not_outside() -> None:
    def task(name: str, documents: list[str], queries: list[str], answer: int) -> EvaluationSet:
        ids = [f"d{i}" for i in range(len(documents))]
        asked = [f"q{i}" for i in range(len(queries))]
        return EvaluationSet(name, ids, documents, asked, queries, {"all": {q: {ids[answer]} for q in asked}})

    own = draw(task("own", ["padi", "ikan"], ["apa", "siapa", "mana"], 0), count=5, seed=0)
    shares_document = draw(task("b", ["ikan"], ["bila"], 0), count=5, seed=0)
    shares_query = draw(task("c", ["hujan"], ["siapa", "kenapa"], 0), count=5, seed=0)
    assert outside_of(own, [shares_document, shares_query], seed=0) == ["kenapa"]


def test_queries_are_drawn_once_and_by_the_seed(folders: list[Path]) -> None:
    task = load_set(folders[0])
    one, again, other = (draw(task, count=5, seed=s) for s in (0, 0, 1))
    assert one.query_ids == again.query_ids != other.query_ids
    assert len(set(one.query_ids)) == 5
    assert draw(task, count=99, seed=0).query_ids == task.query_ids
    asked = ask(one, [("emoji", 1.0), ("cut_documents", 1.0)], ["luar"], seed=0)
    assert len(set(asked.texts)) == len(asked.texts) and set(asked.damaged) == {("emoji", 1.0)}
    assert [asked.texts[i] for i in asked.clean] == one.queries and [asked.texts[i] for i in asked.outside] == ["luar"]


class CountingEmbedder:
    """Three letters of a text as a vector; remembers what it was asked."""

    name, dimension = "counting", 3

    def __init__(self) -> None:
        self.passages: list[str] = []

    def embed(self, texts: Any, *, role: str, progress: Any = None) -> NDArray[np.float32]:
        if role == "passage":
            self.passages += texts
        rows = np.array([[t.count("a") + 1, t.count("i"), len(t) % 7] for t in texts], np.float32)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_dense_system_embeds_no_passage_twice(folders: list[Path], tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    kinds = ["typo_swap", "cut_documents", "number_swap", "negation_swap"]
    for name, sets in (("a", folders[:1]), ("b", folders[:1])):
        (tmp_path / name).mkdir()
        ranker = DenseRanker(embedder) if name == "a" else _Plain(DenseRanker(CountingEmbedder()))
        measure(
            config(kinds=kinds), sets=sets, systems=[system("dense", ranker)], out=tmp_path / name, seed=0,
            progress=Progress(),
        )  # fmt: skip
    assert len(set(embedder.passages)) == len(embedder.passages) > 60
    # and the memory changes no figure
    assert (tmp_path / "a" / "robustness.json").read_text() == (tmp_path / "b" / "robustness.json").read_text()


class _Plain:
    """A dense ranker whose type nobody knows."""

    def __init__(self, inner: DenseRanker) -> None:
        self.rank = inner.rank


def test_the_memory_gives_back_what_it_was_given() -> None:
    embedder = CountingEmbedder()
    memory = Remembering(embedder)
    first = memory.embed(["satu", "dua", "satu"], role="passage")
    second = memory.embed(["dua", "tiga"], role="passage")
    assert embedder.passages == ["satu", "dua", "tiga"]
    assert (first[[0, 1]] == first[[2, 1]]).all() and (second[0] == first[1]).all()
    memory.forget()
    memory.embed(["dua"], role="passage")
    assert embedder.passages[-1] == "dua"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kinds": ["typo_swop"]}, "typo_swop"),
        ({"kinds": []}, "at least one"),
        ({"kinds": ["emoji", "emoji"]}, "twice"),
        ({"strengths": [0.5, 0.1]}, "rising"),
        ({"strengths": [0.0, 0.5]}, "greater than 0"),
        ({"strengths": [2.0]}, "less than or equal to 1"),
        ({"queries_per_set": 1}, "greater than or equal to 2"),
        ({"strength": [0.1]}, "not permitted"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RobustnessConfig.model_validate(given)


def test_all_kinds_are_measured_unless_some_are_named() -> None:
    assert RobustnessConfig().kinds == NAMES
    assert RobustnessConfig(kinds=["emoji", "typo_swap"]).kinds == ["typo_swap", "emoji"]


def test_mistakes_are_told_in_a_line(folders: list[Path], tmp_path: Path) -> None:
    def run(sets: list[Path], names: list[str], **changed: Any) -> None:
        systems = [system(name, WordRanker()) for name in names]
        measure(config(**changed), sets=sets, systems=systems, out=tmp_path, seed=0, progress=Progress())

    with pytest.raises(UserError, match="no systems"):
        run(folders, [])
    with pytest.raises(UserError, match=r"'a'.*the same name"):
        run(folders, ["a", "a"])
    with pytest.raises(UserError, match=r"'alpha'.*the same name"):
        run([folders[0], folders[0]], ["a"])
    with pytest.raises(UserError, match=r"'b'.*name some of a"):
        run(folders, ["a"], systems=["b"])
    assert not list(tmp_path.iterdir())


def test_a_ranker_that_breaks_its_contract_is_a_defect(folders: list[Path], tmp_path: Path) -> None:
    class Short(WordRanker):
        def rank(self, documents: Any, queries: Any, k: int) -> Any:
            return super().rank(documents, queries, k - 1)

    with pytest.raises(RuntimeError, match="short"):
        measure(config(), sets=folders, systems=[system("short", Short())], out=tmp_path, seed=0, progress=Progress())
