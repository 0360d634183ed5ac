"""Shares, caps and temperature of a blend against what the words say, and what is refused."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from data_prep.blend import Portion, blend_counts, blend_facts, blend_lines, check_blend, plan_blend, stages_of
from data_prep.errors import UserError

PAIRS = {"legal_ms": 1000, "legal_en": 400, "twitter": 90, "news": 2500}


def _epoch(portions: list[Portion]) -> dict[str, int]:
    return {p.name: p.rows_per_epoch for p in portions}


def test_stages_alone_are_what_they_were() -> None:
    portions = plan_blend({"synth": 1.0, "mine": 0.3, "pairs": 0.25}, {"mine": 7, "synth": 100})
    assert [(p.name, p.rows, p.share, p.rows_per_epoch) for p in portions] == [
        ("mine", 7, 0.3, 2),
        ("synth", 100, 1.0, 100),
    ]
    assert plan_blend({"mine": 0.01}, {"mine": 3})[0].rows_per_epoch == 1


@pytest.mark.parametrize(
    ("blend", "takes"),
    [
        ({"pairs": 1.0, "pairs:legal_*": 0.5}, {"legal_ms": 500, "legal_en": 200, "twitter": 90, "news": 2500}),
        ({"pairs:legal_*": 0.5}, {"legal_ms": 500, "legal_en": 200}),
        ({"pairs": 0.1, "pairs:legal_*": 0.5, "pairs:legal_ms": 1.0}, {"legal_ms": 1000, "legal_en": 200, "twitter": 9,
                                                                       "news": 250}),
        ({"pairs:*": 0.1, "pairs:legal_*": 0.5, "pairs:*_ms": 0.2}, {"legal_ms": 500, "legal_en": 200, "twitter": 9,
                                                                     "news": 250}),
        ({"pairs": 1.0, "pairs:news": 0}, {"legal_ms": 1000, "legal_en": 400, "twitter": 90}),
    ],
)  # fmt: skip
def test_the_most_specific_entry_wins(blend: dict[str, float], takes: dict[str, int]) -> None:
    for order in (blend, dict(reversed(blend.items()))):
        assert _epoch(plan_blend(order, {"pairs": PAIRS})) == {f"pairs:{n}": takes[n] for n in sorted(takes)}


def test_names_with_wild_letters_name_themselves() -> None:
    assert _epoch(plan_blend({"pairs:a[1]": 1.0}, {"pairs": {"a[1]": 5, "a1": 7}})) == {"pairs:a1": 7, "pairs:a[1]": 5}
    assert _epoch(plan_blend({"pairs:a[1]": 1.0, "pairs:a1": 0}, {"pairs": {"a[1]": 5, "a1": 7}})) == {"pairs:a[1]": 5}


def test_caps_bind_after_shares() -> None:
    portions = plan_blend({"pairs": 0.5, "mine": 1.0}, {"pairs": PAIRS, "mine": {"x": 30}}, cap=100)
    assert _epoch(portions) == {
        "mine:x": 30, "pairs:legal_en": 100, "pairs:legal_ms": 100, "pairs:news": 100, "pairs:twitter": 45,
    }  # fmt: skip


def test_temperature_is_the_power_law_with_no_row_twice() -> None:
    for temperature in (1.0, 1.5, 2.0, 5.0, 1e6):
        portions = plan_blend({"pairs": 1.0}, {"pairs": PAIRS}, temperature=temperature)
        smallest = min(PAIRS.values())
        for portion in portions:
            assert portion.source is not None
            n = PAIRS[portion.source]
            wanted = smallest * (n / smallest) ** (1 / temperature)
            assert portion.rows_per_epoch == pytest.approx(wanted, abs=0.5001)
            assert portion.rows_per_epoch <= n
        assert _epoch(portions)["pairs:twitter"] == 90, "the smallest is taken whole: the factor is the largest"
    assert _epoch(plan_blend({"pairs": 1.0}, {"pairs": PAIRS}, temperature=1.0)) == {
        f"pairs:{n}": PAIRS[n] for n in sorted(PAIRS)
    }


def test_shares_weigh_what_temperature_leaves() -> None:
    portions = plan_blend({"pairs": 1.0, "pairs:news": 0.5}, {"pairs": PAIRS}, temperature=2.0, cap=200)
    assert _epoch(portions) == {
        "pairs:legal_en": round(math.sqrt(90 * 400)),
        "pairs:legal_ms": 200,
        "pairs:news": 200,
        "pairs:twitter": 90,
    }


def test_nothing_depends_on_the_order_of_entries_or_sources() -> None:
    blend = {"pairs": 0.7, "pairs:legal_*": 0.5, "mine": 0.3, "synth": 1.0, "synth:a": 0.2}
    found: dict[str, Any] = {"pairs": PAIRS, "mine": {"x": 50}, "synth": {"a": 10, "b": 20}}
    told = plan_blend(blend, found, cap=300, temperature=1.7)
    for seed in range(5):
        shuffle = random.Random(seed).sample
        again = {s: dict(shuffle(sorted(rows.items()), len(rows))) for s, rows in shuffle(sorted(found.items()), 3)}
        assert plan_blend(dict(shuffle(sorted(blend.items()), 5)), again, cap=300, temperature=1.7) == told


@pytest.mark.parametrize(
    ("blend", "says"),
    [
        (
            {"pairs": 1.0, "pairs:legl_*": 0.5},
            r"blend\.pairs:legl_\*: names no source of pairs \(there are: legal_en, ",
        ),
        ({"pairs:twiter": 0.5}, "did you mean 'twitter'"),
        ({"pairs:legal_*": 0}, r"none of these sources has pairs \(there are: \['pairs:legal_en', "),
        ({"synth": 1.0}, r"none of these sources has pairs"),
    ],
)
def test_entries_that_take_nothing(blend: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan_blend(blend, {"pairs": PAIRS})


def test_a_stage_that_is_off_drops_out_with_its_sources() -> None:
    assert _epoch(plan_blend({"pairs:x_*": 0.5, "mine": 1.0}, {"mine": 4})) == {"mine": 4}


def test_ids_are_no_sources() -> None:
    with pytest.raises(UserError, match="300 sources: must be at most 256"):
        plan_blend({"pairs": 1.0}, {"pairs": {f"s{i}": 1 for i in range(300)}}, cap=5)


@pytest.mark.parametrize(
    ("blend", "says"),
    [
        ({"synht": 1.0}, "blend.synht: must be 'pairs', 'mine' or 'synth'.*did you mean 'synth'"),
        ({"pairs:": 1.0}, "blend.pairs:: must be"),
        ({"corpus:x": 1.0}, "name a stage"),
        ({"pairs": 0.0}, "blend.pairs = 0: must be above 0"),
    ],
)
def test_keys_that_no_blend_has(blend: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_blend(blend)


def test_told_in_json_counts_and_lines() -> None:
    blend = {"pairs:legal_*": 0.5, "mine": 0.3}
    assert stages_of(blend) == {"pairs", "mine"}
    facts = blend_facts(plan_blend(blend, {"pairs": PAIRS, "mine": 1000}))
    assert facts[0] == {
        "source": "mine", "rows": 1000, "rows_per_epoch": 300, "share_of_source": 0.3, "share_of_epoch": 0.3
    }  # fmt: skip
    assert blend_counts(facts) == {
        "epoch_pairs": 1000, "epoch_pairs of mine": 300, "epoch_pairs of pairs:legal_en": 200,
        "epoch_pairs of pairs:legal_ms": 500,
    }  # fmt: skip
    assert blend_lines(facts) == [
        "source           rows  an epoch takes  of the source  of the epoch",
        "mine            1,000             300          30.0%         30.0%",
        "pairs:legal_en    400             200          50.0%         20.0%",
        "pairs:legal_ms  1,000             500          50.0%         50.0%",
        "together        2,400           1,000                       100.0%",
    ]
