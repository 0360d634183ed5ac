"""Every rule against a plain loop over queries and texts, written independently of the masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.vectors import Vectors
from data_prep.errors import UserError
from data_prep.fanout import Serial
from data_prep.mine.choose import Choice, choose_block
from data_prep.mine.policy import RULES, Policy
from data_prep.mine.select import Known, Mined
from data_prep.mine.sides import RowsOf, Side
from tests.data_prep.mine.random_sides import random_side

LOOSE: dict[str, Any] = {
    "positive_min_score": 0.5, "positives_per_query": 2, "negative_ranks": [3, 30], "negatives_per_query": 5,
    "sampling": "hardest", "duplicate_score": 0.97, "translation_score": 0.75, "negative_margin": 0.05,
    "near_copy": 0.7,
}  # fmt: skip


@lru_cache(maxsize=4)
def products(vectors: Vectors) -> np.ndarray:
    rows = vectors.read(0, vectors.rows).astype(np.float64)
    return rows @ rows.T


def jaccard(one: str, other: str) -> float:
    a, b = set(one.lower().split()), set(other.lower().split())
    return len(a & b) / len(a | b)


def naive(
    side: Side, texts: list[str], policy: Policy, query: int, positives: list[int] | None, neighbors: int
) -> tuple[list[int], list[int]]:
    """Positives and negatives of one query, rule by rule, in float64."""
    cosine = products(side.vectors)
    second = None if side.second is None else products(side.second)
    near = [n for n in np.argsort(-cosine[query], kind="stable").tolist() if n != query]
    if positives is None:
        positives = [
            n for n in near[:neighbors]
            if cosine[query, n] >= policy.positive_min_score
            and not (policy.on("duplicate") and cosine[query, n] >= policy.duplicate_score)
        ][: policy.positives_per_query]  # fmt: skip
    if not positives:
        return [], []
    worst = min(cosine[query, p] for p in positives)
    related = [query, *positives]
    first, last = policy.negative_ranks or [1, len(near)]
    language = {"query": side.languages[query], "positive": side.languages[positives[0]], "any": 0}[policy.languages]
    pool = [n for n in near if language in (0, side.languages[n])][first - 1 : last]

    def vetoed(n: int) -> bool:
        score = cosine[query, n]
        by_rule = {
            "same_document": any(side.documents[n] == side.documents[r] for r in related),
            "max_score": score > policy.negative_max_score,
            "ratio": score > policy.negative_max_ratio * max(worst, 0),
            "margin": score > worst - policy.negative_margin,
            "translation": any(
                side.languages[n] != side.languages[r] and cosine[n, r] >= policy.translation_score for r in related
            ),
            "duplicate": any(cosine[n, r] >= policy.duplicate_score for r in related),
            "near_copy": any(jaccard(texts[n], texts[r]) >= policy.near_copy for r in related),
        }
        if second is not None:
            theirs = second[query]
            lowest = min(theirs[p] for p in positives)
            by_rule["second_teacher"] = theirs[n] > policy.agreement_ratio * max(lowest, 0)
        return n in related or any(hit for rule, hit in by_rule.items() if policy.on(rule))  # type: ignore[arg-type]

    left = [n for n in pool if not vetoed(n)]
    return positives, left[: policy.negatives_per_query]


def check(side: Side, texts: list[str], policy: Policy, mined: Mined, *, neighbors: int = 30) -> int:
    """Compare every query with the plain loop; returns how many negatives there were."""
    found = 0
    for query in range(len(side)):
        positives, negatives = naive(side, texts, policy, query, None, neighbors)
        assert [n for n in mined.positives[query].tolist() if n >= 0] == positives, query
        assert [n for n in mined.negatives[query].tolist() if n >= 0] == negatives, query
        found += len(negatives)
    return found


@pytest.fixture(scope="module")
def world() -> tuple[Side, list[str]]:
    return random_side(200, second=True)


@pytest.mark.parametrize("languages", ["any", "query", "positive"])
def test_all_rules_together(world: Any, mine_side: Callable[..., Mined], languages: Any) -> None:
    policy = Policy(**LOOSE, languages=languages)
    assert check(*world, policy, mine_side(*world, policy)) > 200


def test_texts_of_unknown_language_take_negatives_of_any(mine_side: Callable[..., Mined]) -> None:
    side, texts = random_side(150, seed=9)
    side.languages = np.where(np.arange(150) % 4 == 0, 0, side.languages)
    policy = Policy(**{**LOOSE, "without": [*RULES]}, languages="query")
    assert check(side, texts, policy, mine_side(side, texts, policy)) > 100


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "cross_encoder"])
def test_each_rule_alone(world: Any, mine_side: Callable[..., Mined], rule: Any) -> None:
    policy = Policy(**LOOSE, without=[other for other in RULES if other != rule])
    free = Policy(**LOOSE, without=list(RULES))
    mined, unruled = mine_side(*world, policy), mine_side(*world, free)
    check(*world, policy, mined)
    assert mined.counts[f"skipped_negative_{rule}"] == mined.alone[f"skipped_negative_{rule}"] > 0
    assert not np.array_equal(mined.negatives, unruled.negatives)  # the rule bites
    assert unruled.alone == {}


def test_known_positives_are_kept_and_their_texts_are_no_negatives(world: Any, mine_side: Callable[..., Mined]) -> None:
    side, texts = world
    generator = np.random.default_rng(1)
    known = np.full((len(side), 3), -1)
    for query in range(len(side)):
        others = [n for n in range(len(side)) if n != query]
        some = generator.choice(others, generator.integers(1, 4), replace=False)
        known[query, : len(some)] = some
    policy = Policy(**{**LOOSE, "negative_ranks": [1, 60], "negative_margin": 0.0})
    mined = mine_side(side, texts, policy, known=Known(side, known))
    found = 0
    for query in range(len(side)):
        given = [n for n in known[query].tolist() if n >= 0]
        _, negatives = naive(side, texts, policy, query, given, 30)
        assert [n for n in mined.negatives[query].tolist() if n >= 0] == negatives
        found += len(negatives)
    assert np.array_equal(mined.positives, known) and found > 40


def test_blocks_order_and_a_second_run_change_nothing(
    world: Any, mine_side: Callable[..., Mined], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    side, texts = world
    calls: list[int] = []

    def counted(**part: Any) -> dict[str, Any]:
        calls.append(part["start"])
        return choose_block(**part)

    for sampling in ("uniform", "temperature", "stages"):
        policy = Policy(**{**LOOSE, "sampling": sampling})
        scratch = tmp_path / sampling
        whole = mine_side(side, texts, policy, scratch=scratch)
        with monkeypatch.context() as patch:
            patch.setattr("data_prep.mine.choose._BLOCK", 37)
            cut = mine_side(side, texts, policy)
            patch.setattr("data_prep.mine.positives._BLOCK", 41)
            backwards = mine_side(side, texts, policy, rows=np.arange(len(side))[::-1].copy())
        for name in ("positives", "negatives", "negative_scores"):
            assert np.array_equal(getattr(whole, name), getattr(cut, name))
            assert np.array_equal(getattr(whole, name), getattr(backwards, name)[::-1])
        assert whole.counts == cut.counts == backwards.counts
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr("data_prep.mine.choose.choose_block", counted)
            again = mine_side(side, texts, policy, scratch=scratch)
            other = mine_side(side, texts, Policy(**{**LOOSE, "sampling": sampling, "near_copy": 1.0}), scratch=scratch)
        assert len(calls) == 1  # the finished block was not computed again, that of another policy was
        assert np.array_equal(again.negatives, whole.negatives) and not np.array_equal(other.negatives, whole.negatives)


class _Killed(Serial):
    """Computes two blocks and dies."""

    def map(self, function: str, parts: Any, **more: Any) -> Any:
        if not function.endswith(":choose_block"):
            return super().map(function, parts, **more)
        super().map(function, parts[:2], **more)
        raise KeyboardInterrupt


def test_a_killed_run_goes_on(
    world: Any, mine_side: Callable[..., Mined], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("data_prep.mine.choose._BLOCK", 50)
    policy = Policy(**LOOSE)
    whole = mine_side(*world, policy)
    with pytest.raises(KeyboardInterrupt):
        mine_side(*world, policy, scratch=tmp_path / "killed", fanout=_Killed())
    finished = len(list((tmp_path / "killed" / "choose").glob("*.json")))
    again = mine_side(*world, policy, scratch=tmp_path / "killed")
    assert np.array_equal(whole.negatives, again.negatives) and finished == 2


def _reversed(vectors: Vectors) -> Vectors:
    return RowsOf(vectors, np.arange(vectors.rows)[::-1].copy())


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ["documents", "languages", "sketches", "vectors", "second", "keys"])
def test_a_finished_block_counts_for_the_same_facts_only(tmp_path: Path, name: str, known: bool) -> None:
    """Every fact that a rule reads, of every side, is part of what a block is known by."""
    side, texts = random_side(60, second=True)
    positives = random_side(20, seed=1, second=True)[0] if known else side
    rows = np.full((60, 1), 3)
    more: dict[str, Any] = {
        "policy": Policy(**LOOSE), "rows": rows, "scores": rows.astype(np.float32), "candidates": rows,
        "candidate_scores": rows.astype(np.float32), "own_keys": side.keys, "ids": texts, "seed": 0, "spare": 0,
    }  # fmt: skip

    def digest(**sides: Side) -> str:
        given = {"queries": side, "corpus": side, "positives": positives, **sides}
        if not known:
            given["positives"] = given["corpus"]
        return Choice(**given, **more).save(tmp_path)

    found = {digest(), digest()}
    assert len(found) == 1
    for which, whole in (("queries", side), ("corpus", side), ("positives", positives))[: 3 if known else 2]:
        value = getattr(whole, name)
        other = _reversed(value) if name in ("vectors", "second") else value[::-1].copy()
        found |= {digest(**{which: replace(whole, **{name: other})}), digest(**{which: replace(whole, second=None)})}
    sides = 3 if known else 2
    assert len(found) == 1 + 2 * sides


def test_a_text_may_be_used_only_so_often(world: Any, mine_side: Callable[..., Mined]) -> None:
    policy = Policy(**LOOSE)
    free = mine_side(*world, policy)
    capped = mine_side(*world, Policy(**LOOSE, negative_max_uses=3))
    uses = [np.bincount(m.negatives[m.negatives >= 0], minlength=200).max() for m in (free, capped)]
    assert uses[0] > 3 and uses[1] <= 3
    assert capped.counts["skipped_negative_max_uses"] > 0
    assert (capped.negatives >= 0).sum() > 0.5 * (free.negatives >= 0).sum()  # spares take the place of what is gone


def test_hubness_reorders_by_the_corrected_score(mine_side: Callable[..., Mined]) -> None:
    side, texts = random_side(200, seed=4)
    vectors = side.vectors.read(0, 200).astype(np.float64)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = -np.sort(-cosine, axis=1)[:, :10]
    for kind in ("csls", "local_scaling"):
        if kind == "csls":
            crowd = nearest.mean(axis=1)
            score = 2 * cosine - crowd[:, None] - crowd[None]
        else:
            scale = np.sqrt(2 - 2 * nearest[:, -1])
            score = np.exp(-(2 - 2 * cosine) / (scale[:, None] * scale[None]))
            score[~np.isfinite(cosine)] = -1
        policy = Policy(**{**LOOSE, "negative_ranks": [1, 40], "without": list(RULES), "hubness": kind})
        mined = mine_side(side, texts, policy, neighbors=199)
        for query in range(200):
            good = [n for n in np.argsort(-score[query]).tolist() if cosine[query, n] >= 0.5 and n != query][:2]
            if good:
                assert [n for n in mined.positives[query].tolist() if n >= 0] == good
                pool = [n for n in np.argsort(-score[query]).tolist() if n != query][:40]
                wanted = [n for n in pool if n not in good][:5]
                assert set(mined.negatives[query].tolist()) == set(wanted)


def test_windows_that_are_empty_name_one_that_is_not(world: Any, mine_side: Callable[..., Mined]) -> None:
    for window in (
        {"negative_scores": [0.9999, 1.0]},
        {"negative_relative": [5.0, 6.0]},
        {"negative_distances": [1.9999]},
    ):
        with pytest.raises(UserError, match="is empty for every query: 98 % of the") as caught:
            mine_side(*world, Policy(**{**LOOSE, "negative_ranks": None, "without": list(RULES), **window}))
        low, high = (float(word.strip("[],")) for word in caught.value.fix.split("meets ")[1].split(", "))
        if (name := next(iter(window))) == "negative_scores":
            fine = mine_side(
                *world, Policy(**{**LOOSE, "negative_ranks": None, name: [max(-1.0, low), min(1.0, high)]})
            )
            assert (fine.negatives >= 0).any()  # the advice works
    with pytest.raises(UserError, match=r"negative_ranks = \[500, 600\] is empty|is empty for every query"):
        mine_side(*world, Policy(**{**LOOSE, "negative_ranks": [500, 600], "languages": "query"}))


def test_shares_are_no_percentiles() -> None:
    with pytest.raises(ValueError, match=r"counts from 0 to 100\. Fix: write \[98\.0, 99\.8\]"):
        Policy(negative_percentiles=[0.98, 0.998])
