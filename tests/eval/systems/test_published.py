"""Published figures: complete, in range, told apart from measured ones, and picked by the kind of a set."""

from __future__ import annotations

from collections import Counter

import pytest

from eval.systems.published import KINDS, KS, NOT_RERUN, PUBLISHED, kind_of, published, published_table


def test_every_row_is_a_recall_that_rises_with_k() -> None:
    for row in PUBLISHED:
        assert 0 < row.recall[0] < 1 and list(row.recall) == sorted(row.recall) and row.recall[-1] < 1, row
    assert len({(row.system, row.set) for row in PUBLISHED}) == len(PUBLISHED)


def test_the_models_stand_on_all_six_sets_but_for_the_one_that_nobody_told() -> None:
    held = Counter(row.set for row in PUBLISHED)
    assert set(held) == set(KINDS.values()) and sorted(held.values()) == [6, 7, 7, 7, 7, 7]
    assert not any(row.set == "c.cari.com.my" and "2B" in row.system for row in PUBLISHED)


def test_what_the_authors_claim_of_the_law_set_holds_in_the_figures() -> None:
    recall = {row.system: row.recall for row in PUBLISHED if row.set == "lom.agc.gov.my"}
    big, ada = recall["Malaysian Llama2 2B contrastive"], recall["text-embedding-ada-002"]
    assert [b > a for b, a in zip(big, ada, strict=True)] == [False, True, True, True]


def test_a_row_says_that_it_was_not_measured_here() -> None:
    (row,) = [r for r in published({"lom": None}) if "2B" in r["system"]]
    assert set(row) == {"system", "set", "metrics", "source", "note"}
    assert row["metrics"] == {"recall@1": 0.155, "recall@3": 0.2911, "recall@5": 0.3725, "recall@10": 0.4887}
    assert row["note"].startswith(NOT_RERUN) and "training data" in row["note"] and "2402.03053" in row["source"]


@pytest.mark.parametrize(
    ("name", "told", "kind"),
    [
        ("bcari_noisy_standard", None, "forum"),
        ("newssent_ms_en", None, "news"),
        ("legal_explanation_clause", None, "law"),
        ("iapp_th", None, None),
        ("iapp_th", "news", "news"),
        ("news_title_article", "quiz", None),
    ],
)
def test_the_kind_is_of_set_json_or_of_the_name(name: str, told: str | None, kind: str | None) -> None:
    assert kind_of(name, told) == kind


def test_sets_of_no_kind_have_no_rows_and_two_of_a_kind_one_lot() -> None:
    assert published({"iapp_th": None}) == [] and published_table([]) == ""
    assert len(published({"bcari_ms_en": None, "bcari_noisy_standard": None})) == 7


def test_the_table_tells_every_figure_once() -> None:
    rows = published({"twitter_ms_en": None, "research_en": None})
    table = published_table(rows)
    assert max(map(len, table.splitlines())) < 160 and table.count("\n[1] ") == 2
    for row in rows:
        line = next(
            x for x in table.splitlines() if x.startswith(row["system"]) and f"{row['metrics']['recall@1']:.4f}" in x
        )
        assert [f"{row['metrics'][f'recall@{k}']:.4f}" for k in KS] == line.split()[-4:]
