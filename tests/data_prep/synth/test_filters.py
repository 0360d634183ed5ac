from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.corpus.private import PrivateConfig
from data_prep.errors import UserError
from data_prep.synth.filters import FiltersConfig, TextFilters, copied_run, copied_share, question_key, tidy, words_of

PASSAGE = (
    "Universiti Malaya terletak di Lembah Pantai, Kuala Lumpur. Ia ditubuhkan pada tahun 1949 dan merupakan universiti "
    "tertua di Malaysia yang menawarkan pelbagai program ijazah dalam bidang perubatan, undang-undang dan kejuruteraan."
)


def _refuse(
    question: str, *, style: str = "question", language: str = "ms", by_model: bool = True, **config: object
) -> str | None:
    filters = TextFilters(FiltersConfig(**config), by_model=by_model)  # type: ignore[arg-type]
    return filters.refuse(tidy(question), [PASSAGE], style=style, language=language)


@pytest.mark.parametrize(
    "question",
    [
        "Sebagai model AI, saya tidak dapat menjawab soalan ini",
        "As an AI language model I cannot write that",
        "Maaf, saya tidak dapat membantu dengan permintaan itu",
        "Berdasarkan teks di atas, di manakah universiti itu?",
        "Mengikut petikan yang diberikan, bilakah ia ditubuhkan?",
        "According to the passage, where is the university?",
        "What does the author mention about the campus?",
        "Apakah yang dinyatakan dalam artikel tentang kampus?",
        "Here are two questions about the university",
    ],
)
def test_talk_about_the_task_is_refused(question: str) -> None:
    assert _refuse(question, language="en" if question.isascii() and "the" in question else "ms") == "refused_meta"
    spared = TextFilters(FiltersConfig(meta=False, language=False), by_model=True)
    assert spared.refuse(question, [PASSAGE], style="question", language="ms") != "refused_meta"


@pytest.mark.parametrize(
    "question",
    [
        "Di manakah letaknya kampus induk universiti pertama negara?",
        "Apakah peranan artikel 153 dalam perlembagaan?",
        "Apakah maksud teks suci dalam agama Hindu?",
        "Bolehkah model bahasa membantu pelajar?",
        "Mengapa dokumen perjalanan perlu disahkan?",
    ],
)
def test_plain_questions_are_spared(question: str) -> None:
    assert _refuse(question) is None


@pytest.mark.parametrize(
    "question",
    ["", "???", '{"question": "apa"}', "Apakah **universiti**", "Lihat https://um.edu.my", "Apakah universiti..."],
)
def test_remains_of_a_form_are_refused(question: str) -> None:
    assert _refuse(question) == "refused_malformed"


@pytest.mark.parametrize(
    ("question", "language", "style", "refused"),
    [
        ("Where is the oldest university of the country located?", "ms", "question", True),
        ("Di manakah letaknya kampus induk yang tertua di negara?", "en", "question", True),
        (
            "Di mana letak kampus utama yang paling tua di negeri ini?",
            "ms",
            "question",
            False,
        ),  # Indonesian reads as Malay
        ("What is Kota Tinggi?", "en", "question", False),  # a name says nothing
        ("meeting tadi cancel sebab boss tak datang, betul ke?", "ms", "question", False),
        ("knp uni tu x bagi scholarship kat local student", "ms", "colloquial", False),
        ("大学在哪里？", "ms", "question", True),
        ("大学在哪里？", "zh", "cross_lingual", False),
    ],
)
def test_language(question: str, language: str, style: str, refused: bool) -> None:
    assert (_refuse(question, language=language, style=style) == "refused_language") is refused  # type: ignore[arg-type]


def test_copies_are_refused() -> None:
    run = "Apakah universiti tertua di Malaysia yang menawarkan pelbagai program ijazah dalam bidang perubatan, undang-undang dan kejuruteraan?"
    assert _refuse(run) == "refused_copied" and _refuse(run, by_model=False) == "refused_copied"
    share = "universiti tertua di Malaysia menawarkan program ijazah perubatan"
    assert _refuse(share) == "refused_copied"
    assert _refuse(share, style="keywords") is None and _refuse(share, by_model=False) is None
    assert _refuse("Apakah universiti yang paling lama wujud di Malaysia?") is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=20))
def test_copied_run_equals_the_naive_search(asked: list[str], held: list[str]) -> None:
    runs = [asked[i:j] for i in range(len(asked)) for j in range(i + 1, len(asked) + 1)]
    texts = {tuple(held[i:j]) for i in range(len(held)) for j in range(i + 1, len(held) + 1)}
    naive = max((len(run) for run in runs if tuple(run) in texts), default=0)
    assert copied_run(" ".join(asked), " ".join(held)) == naive


def test_copied_share_takes_the_best_sentence() -> None:
    assert copied_share("universiti di Kuala Lumpur sejak 1949", PASSAGE) == pytest.approx(4 / 6)
    assert copied_share("", PASSAGE) == 0.0


def test_keys_of_questions() -> None:
    same = [
        "Apakah ibu negara Malaysia?",
        "apa ibu negara malaysia",
        "Ibu negara Malaysia apakah?",
        "apa tu ibu negara Malaysia ek",
    ]
    assert len({question_key(question) for question in same}) == 1
    other = ["Apakah ibu negeri Malaysia?", "Apakah ibu negara Indonesia?", "Apakah?", "Siapa?"]
    assert len({question_key(question) for question in [same[0], *other]}) == 5


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("1. Apakah zakat?", "Apakah zakat?"),
        ("- Soalan 2: Apakah\n zakat?", "Soalan 2: Apakah zakat?"),
        ("Soalan 2: Apakah zakat?", "Apakah zakat?"),
        ('"Apakah zakat?"', "Apakah zakat?"),
        ('"Apa" dan "siapa"', '"Apa" dan "siapa"'),
        ("2020 tahun apa?", "2020 tahun apa?"),
    ],
)
def test_tidy(raw: str, clean: str) -> None:
    assert tidy(raw) == clean


def test_evaluation_texts_are_refused(evaluation_set: Path) -> None:
    filters = TextFilters(FiltersConfig(), [evaluation_set], by_model=True)
    for question in ("berapa harga minyak esok hari", "Berapa   HARGA minyak esok hari?"):
        assert filters.refuse(question, [PASSAGE], style="question", language="ms") == "refused_evaluation_overlap"
    ours = "Apakah universiti yang paling lama wujud di Malaysia?"
    assert filters.refuse(ours, [PASSAGE], style="question", language="ms") is None
    assert filters.refuse(ours, ["Kucing itu tidur di atas meja makan."], style="question", language="ms")
    assert filters.overlaps(["x", "Di mana kucing itu tidur"]) and not filters.overlaps([ours])


def test_evaluation_texts_are_sought_as_the_corpus_is_cleaned_and_checked(tmp_path: Path, write_jsonl: Any) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "d", "title": "", "text": "Teks lain yang tiada kaitan di sini."}])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "hantar borang kepada ali@contoh.com.my segera"}])
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")

    def found(text: str, **more: Any) -> bool:
        return TextFilters(FiltersConfig(), [tmp_path], by_model=True, **more).overlaps([text])

    scrubbed = "Hantar borang kepada <EMAIL> segera"
    assert found(scrubbed) and not found(scrubbed, private=PrivateConfig(enabled=False))
    edited = "hantar borang kepada abu@contoh.com.my segera"
    assert found(edited) and not found(edited, decontaminate=DecontaminateConfig(near=1.0))


def test_own_patterns() -> None:
    assert _refuse("Apakah kuiz harian kampus yang lama?", more_meta=["kuiz harian"]) == "refused_meta"
    with pytest.raises(UserError, match="holds no regular expression"):
        TextFilters(FiltersConfig(more_meta=["("]), by_model=False)


def test_words() -> None:
    assert words_of("Undang-undang ＡＢＣ, al-Qur'an!") == ["undang-undang", "abc", "al-qur'an"]
