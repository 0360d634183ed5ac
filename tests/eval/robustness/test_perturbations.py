"""Every kind of damage: pure, graded, never empty, kind to other scripts; and each rule against words written by hand."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.robustness.kinds import KINDS
from eval.robustness.perturbation import graphemes
from eval.robustness.switching import tables
from eval.robustness.typos import neighbours

PIECES = [
    "harga", "minyak", "Kuala", "UMNO", "yang", "tidak boleh", "macam mana", "kanak-kanak", "café", "cafe\u0301", "RM1,250",
    "2018", "12", "is not", "the", "ภาษาไทย", "ราคาน้ำมัน", "தமிழ் மொழி", "நீர்", "马来西亚", "你好", "हिन्दी", "ไม่", "๑๒๓", "👨‍👩‍👧", "🇲🇾", "a",
    "!?", "...", "mati2", " ", "\n", "مرحبا", "1.5",
]  # fmt: skip
MALAY = (
    "Macam mana kanak-kanak yang tinggal di Kuala Lumpur boleh dapat bantuan RM1,250 daripada kerajaan pada tahun 2018?"
    " Ibu bapa tidak perlu membayar dan semua keluarga akan menerima wang itu sebelum bulan Disember, kata menteri."
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join)
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
OTHER_SCRIPTS = "ภาษาไทยราคาน้ำมัน தமிழ் மொழி நீர் 马来西亚，你好。 हिन्दी مرحبا 👨‍👩‍👧🇲🇾"
ADDS = {"emoji", "punctuation"}
CUTS = {"cut_query", "cut_documents"}


def words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


@KIND
@settings(max_examples=15, deadline=None)
@given(text=st.one_of(TEXTS, st.text(max_size=30)), strength=st.floats(0, 1), seed=st.integers(0, 9))
def test_damage_is_pure_and_never_total(kind, text, strength, seed) -> None:
    made = kind(text, strength, seed=seed, key="q")
    assert made == kind(text, strength, seed=seed, key="q")
    assert made.changed == (made.text != text)
    assert bool(made.text.strip()) == bool(text.strip())
    assert kind(text, 0, seed=seed, key="q").text == text


@KIND
def test_damage_depends_on_the_seed_and_the_query_and_nothing_else(kind) -> None:
    first = kind(MALAY, 0.5, seed=1, key="q1").text
    for other in ("q2", "q3"):
        kind("a different query", 0.9, seed=5, key=other)
        np.random.default_rng(0).random(7)
    assert kind(MALAY, 0.5, seed=1, key="q1").text == first
    if kind.name in CUTS | {"switch_to_malay", "case_lower"}:
        return  # nothing is drawn, or there is hardly a place in this text
    assert len({kind(MALAY, 0.5, seed=s, key=k).text for s in range(5) for k in ("q1", "q2")}) > 1


@KIND
def test_full_strength_changes_a_text_with_places_for_it(kind) -> None:
    text = "The price of GOOD rice is not RM1,250 for the children" if kind.name == "switch_to_malay" else MALAY
    assert kind(text, 1, seed=0, key="q").changed


@KIND
def test_strength_outside_its_range_is_refused(kind) -> None:
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            kind("a", strength, seed=0, key="q")


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if k.target == "query" and n not in ADDS | CUTS])
@settings(max_examples=15, deadline=None)
@given(text=TEXTS, low=st.floats(0, 1), high=st.floats(0, 1))
def test_what_a_low_strength_damages_a_higher_one_damages_too(name, text, low, high) -> None:
    low, high = sorted((low, high))
    kind = KINDS[name]
    whole, some, more = (re.split(r"[\s-]+", kind(text, s, seed=3, key="q").text) for s in (0, low, high))
    if not len(whole) == len(some) == len(more):
        return  # "tidak boleh" became one word, "berapa" two: places no longer match
    assert all(b == c for a, b, c in zip(whole, some, more, strict=True) if a != b)


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ADDS | CUTS])
def test_rules_for_latin_letters_leave_other_scripts_alone(name) -> None:
    made = KINDS[name](OTHER_SCRIPTS, 1, seed=0, key="q")
    assert made.text == OTHER_SCRIPTS and not made.changed


@pytest.mark.parametrize("name", sorted(ADDS))
def test_what_is_added_stands_between_words(name) -> None:
    made = graphemes(KINDS[name](OTHER_SCRIPTS, 1, seed=0, key="q").text)
    rest = iter(made)
    kept = [g for g in graphemes(OTHER_SCRIPTS) if g not in "，。"]
    assert all(any(g == other for other in rest) for g in kept)


@pytest.mark.parametrize("name", sorted(CUTS))
@settings(max_examples=30, deadline=None)
@given(text=st.one_of(TEXTS, st.text(max_size=30)), strength=st.floats(0.01, 1))
def test_a_cut_ends_between_graphemes(name, text, strength) -> None:
    left = graphemes(KINDS[name](text, strength, seed=0, key="q").text)
    assert left == graphemes(text)[: len(left)]


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ADDS | CUTS | {"number_swap"}])
@settings(max_examples=15, deadline=None)
@given(text=TEXTS, strength=st.floats(0, 1))
def test_letters_of_other_scripts_keep_their_order_and_marks(name, text, strength) -> None:
    def foreign(value: str) -> list[str]:
        return [g for g in graphemes(value) if unicodedata.name(g[0], "").startswith(("THAI", "TAMIL", "CJK", "DEVAN"))]

    made = KINDS[name](text, strength, seed=2, key="q").text
    assert foreign(made) == foreign(text)
    marks = [g for g in graphemes(made) if unicodedata.category(g[0]) == "Mn"]
    assert not marks  # no mark lost the letter that it stood on


def test_neighbours_are_keys_that_touch() -> None:
    assert neighbours()["g"] == "bfhtvy"
    assert neighbours()["q"] == "aw" and neighbours()["p"] == "lo"
    assert all(a in neighbours()[b] for a, near in neighbours().items() for b in near)


def test_a_typo_is_one_slip_a_word() -> None:
    for name, longer in (("typo_drop", -1), ("typo_double", 1), ("typo_swap", 0), ("typo_neighbour", 0)):
        for before, after in zip(words(MALAY), words(KINDS[name](MALAY, 1, seed=0, key="q").text), strict=True):
            for a, b in zip(re.split(r"[^A-Za-z]+", before), re.split(r"[^A-Za-z]+", after), strict=True):
                assert len(b) == len(a) + (longer if len(a) >= 3 else 0)
                if name == "typo_swap":
                    assert sorted(a) == sorted(b)
                if name == "typo_neighbour" and a != b:
                    ((x, y),) = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
                    assert y.lower() in neighbours()[x.lower()]


def test_the_share_of_words_is_the_strength() -> None:
    text = " ".join(f"kata{chr(97 + i % 26)}xyz" for i in range(4000))
    made = words(KINDS["typo_swap"](text, 0.3, seed=0, key="q").text)
    share = np.mean([a != b for a, b in zip(words(text), made, strict=True)])
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("name", "text", "made"),
    [
        ("sms_spelling", "Macam mana orang yang TIDAK TAHU", "Mcm mne org yg XTAU"),
        ("sms_spelling", "kanak-kanak dan orang-orang, macam-macam", "kanak2 n orang2, macam2"),
        ("sms_spelling", "keyangan yangon", "keyangan yangon"),
        ("vowels_dropped", "Sekolah mana, ibu pun ada", "Sklh mna, ibu pun ada"),
        ("switch_to_english", "Harga rumah tidak murah", "Price house not cheap"),
        ("switch_to_malay", "The price of this house", "The harga of this rumah"),
        ("case_upper", "Harga café ß", "HARGA CAFÉ SS"),
        ("case_lower", "Harga DI Kuala Lumpur", "harga di kuala lumpur"),
        ("full_width", "Ab 12 ภา", "Ａｂ 12 ภา"),
        ("punctuation", "apa? ya, betul!", "apa ya betul"),
        ("cut_query", "satu", "satu"),
        ("cut_query", "satu dua tiga", "satu"),
        ("negation_swap", "Dia tidak boleh pergi", "Dia boleh pergi"),
        ("negation_swap", "Ini adalah rumah", "Ini bukan rumah"),
        ("negation_swap", "It is not true", "It is true"),
        ("negation_swap", "She can go", "She cannot go"),
        ("negation_swap", "rumah besar", "rumah besar"),
        ("number_swap", "mati2 satu rumah", "mati2 satu rumah"),
    ],
)
def test_rules_say_what_they_do(name, text, made) -> None:
    assert KINDS[name](text, 1, seed=0, key="q").text == made


def test_half_a_cut_leaves_half() -> None:
    assert KINDS["cut_query"]("satu dua tiga empat", 0.5, seed=0, key="q").text == "satu dua"
    assert KINDS["cut_query"]("我们走吧", 0.5, seed=0, key="q").text == "我们"
    assert KINDS["cut_documents"]("satu dua tiga empat", 0.25, seed=0, key="q").text == "satu dua tiga"


@settings(max_examples=30, deadline=None)
@given(number=st.from_regex(r"\A[0-9]{1,3}(,[0-9]{3})?(\.[0-9]{1,2})?\Z"), key=st.text(max_size=4))
def test_a_swapped_number_is_another_of_the_same_form(number, key) -> None:
    made = KINDS["number_swap"](f"harga RM{number} sekilo", 1, seed=0, key=key).text
    (found,) = re.findall(r"RM(\S+) ", made)
    assert found != number
    assert re.sub(r"[0-9]", "0", found) == re.sub(r"[0-9]", "0", number)


def test_numbers_of_other_scripts_and_years_stay_what_they_are() -> None:
    thai = KINDS["number_swap"]("ปี ๒๕๖๑", 1, seed=0, key="q").text
    assert thai != "ปี ๒๕๖๑" and re.fullmatch(r"ปี ๒๕[๐-๙]{2}", thai)
    for key in map(str, range(20)):
        assert re.fullmatch(r"tahun 20\d\d", KINDS["number_swap"]("tahun 2018", 0.1, seed=0, key=key).text)
        assert KINDS["number_swap"]("dua ribu", 0.1, seed=0, key=key).changed


def test_a_weak_swap_turns_one_place_and_a_strong_one_all() -> None:
    text = "Dia tidak pergi, dia tidak makan, dia tidak tidur, dia tidak mandi."
    left = [KINDS["negation_swap"](text, s, seed=0, key="q").text.count("tidak") for s in (0.1, 0.5, 1)]
    assert left == [3, 2, 0]


def test_an_invisible_character_hides_inside_a_word() -> None:
    made = KINDS["zero_width"]("harga di pasar", 1, seed=0, key="q").text
    assert re.sub("[\u200b\u200c\u2060]", "", made) == "harga di pasar" and len(made) == len("harga di pasar") + 3


def test_a_look_alike_is_another_letter_that_reads_the_same() -> None:
    made = KINDS["homoglyphs"]("pasar besar", 1, seed=0, key="q").text
    strange = [c for c in made if "CYRILLIC" in unicodedata.name(c)]
    assert len(strange) == 2 and len(made) == len("pasar besar")


def test_the_two_languages_are_no_copies_of_each_other() -> None:
    english, malay = tables()
    assert len(english) > 250 and not set(english) & set(malay)
    assert english["tidak"] == "not" and malay["not"] == "tidak"
