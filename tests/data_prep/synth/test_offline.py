from __future__ import annotations

import numpy as np
import pytest

from data_prep.progress import Progress
from data_prep.synth.colloquial import colloquial
from data_prep.synth.config import SynthConfig
from data_prep.synth.generator import Ask, Made, ask_id
from data_prep.synth.offline import OfflineGenerator, entities

TEXT = (
    "Sejarah Universiti Malaya\n"
    "Universiti Malaya terletak di Lembah Pantai. Kampus Universiti Malaya dirasmikan oleh Tunku Abdul Rahman. "
    "Perpustakaan Universiti Malaya bernilai RM20 juta. Vaksinasi merupakan satu proses pembentukan imuniti."
)
OTHER = "Universiti Malaya menerima status autonomi pada 23 Januari 2012. Kejayaan ini dialu-alukan ramai."


def _made(style: str, *chunks: str, seed: int = 0, count: int = 2, title: str = "", language: str = "ms") -> list[Made]:
    config = SynthConfig()
    generator = OfflineGenerator(
        config, seed, {"universiti": 4, "perpustakaan": 2, "lembah": 2, "pantai": 3, "kampus": 2}
    )
    ask = Ask(ask_id(chunks, style, language), style, chunks, language, language, count, title)
    [(back, made)] = generator.generate([ask], progress=Progress())
    assert back is ask and generator.counts["asks"] == 1
    return made


def test_extractive_asks_different_things() -> None:
    made = _made("extractive", TEXT)
    assert [one.question for one in made] == [
        "Di manakah Universiti Malaya terletak?",
        "Oleh siapakah Kampus Universiti Malaya dirasmikan?",
    ]
    assert all(one.passage is None for one in made)
    assert len(_made("extractive", TEXT, count=9)) == 4


def test_a_study_shows_its_body_alone() -> None:
    text = "Pembelajaran Atas Talian Bakal Guru\nKajian ini bertujuan menilai pembelajaran di sekolah. Guru bersedia."
    [made] = _made("extractive", text)
    assert made.question == "Apakah tujuan kajian Pembelajaran Atas Talian Bakal Guru?"
    assert made.passage == text.partition("\n")[2]


def test_blank_leaves_one_thing_out() -> None:
    made = _made("blank", TEXT, count=4)
    assert made and all(one.question.count("_____") == 1 for one in made)
    for one in made:
        before, _, after = one.question.partition("_____")
        assert TEXT.count(before) and TEXT.count(after)


def test_heading_names_the_document() -> None:
    chunk = "Kandungan Pemakanan\nSusu badan mengandungi nutrien yang mencukupi bagi bayi."
    [made] = _made("heading", chunk, title="Susu Ibu › Kandungan Pemakanan")
    assert made == Made("Susu Ibu: Kandungan Pemakanan", "Susu badan mengandungi nutrien yang mencukupi bagi bayi.")
    assert _made("heading", chunk, title="Kandungan Pemakanan") == []  # a heading alone names nothing
    assert _made("heading", "Teks lain\nAyat.", title="Susu Ibu › Kandungan Pemakanan") == []  # it stands further above


def test_multi_hop_asks_both_chunks_about_one_thing() -> None:
    [made] = _made("multi_hop", TEXT, OTHER)
    assert (
        made.question
        == "Di manakah Universiti Malaya terletak, dan bilakah Universiti Malaya menerima status autonomi?"
    )
    assert made.passage is None
    assert _made("multi_hop", TEXT, "Petronas menerima anugerah khas pada 23 Januari 2012.") == []


def test_the_old_styles_answer_as_before() -> None:
    assert _made("title", TEXT)[0].question == "Sejarah Universiti Malaya"
    assert _made("keywords", TEXT)[0].question == "lembah pantai kampus perpustakaan"
    cloze = _made("cloze", TEXT)[0]
    assert cloze.passage is not None and cloze.question not in cloze.passage
    asked = _made("question", "Soalan: Apa itu zakat?\nJawapan: Zakat ialah sebahagian harta.")[0]
    assert asked == Made("Apa itu zakat?", "Zakat ialah sebahagian harta.")


def test_draws_depend_on_ask_and_seed_alone() -> None:
    config = SynthConfig()
    asks = [Ask(ask_id([str(n)], "colloquial", "ms"), "colloquial", (TEXT,), "ms", "ms", 2) for n in range(12)]
    one = dict(OfflineGenerator(config, 0, {}).generate(asks, progress=Progress()))
    two = dict(OfflineGenerator(config, 0, {}).generate(asks[::-1], progress=Progress()))
    other = dict(OfflineGenerator(config, 1, {}).generate(asks, progress=Progress()))
    assert one == two != other
    assert len({made.question for answers in one.values() for made in answers}) > 4  # people write differently


@pytest.mark.parametrize(
    ("question", "language", "has", "has_not"),
    [
        ("Mengapakah mereka tidak hendak pergi?", "ms", {"tak", "nak", "diorang"}, {"tidak", "hendak", "mereka"}),
        ("Di manakah Universiti Malaya terletak?", "ms", {"kat", "mana"}, {"manakah"}),
        ("Apakah tujuan program itu?", "ms", {"apa", "tu"}, {"apakah"}),
        ("What is Plectostoma?", "en", {"plectostoma"}, set()),
    ],
)
def test_colloquial(question: str, language: str, has: set[str], has_not: set[str]) -> None:
    for seed in range(30):
        made = colloquial(question, language, np.random.default_rng(seed))
        assert made is None or made != question
        words = set((made or question).lower().replace("?", " ").split())
        assert not has_not & words and (made is None or has <= words)
    assert colloquial(question, "zh", np.random.default_rng(0)) is None


def test_entities() -> None:
    assert entities("Universiti Malaya di Kuala Lumpur, kata Ali. Ia besar.") == {"malaya", "kuala lumpur", "ali"}
