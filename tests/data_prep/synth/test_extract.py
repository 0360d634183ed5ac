from __future__ import annotations

import re

import pytest

from data_prep.synth.extract import extract, of_sentence


def _ask(sentence: str, language: str = "ms", title: str = "") -> str | None:
    made = extract(sentence, language, title)
    assert len(made) <= 1
    return made[0].question if made else None


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("Vaksinasi merupakan satu proses pembentukan imuniti.", "Apakah Vaksinasi?"),
        ("Yamaha Tracer 900 GT merupakan motosikal segmen touring yang menggunakan enjin CP3.", "Apakah Yamaha Tracer 900 GT?"),
        ("Antara kesan negatif globalisasi ialah masyarakat kurang bergaul.", "Apakah kesan negatif globalisasi?"),
        ("Pemakanan yang seimbang bermaksud pemakanan yang mengandungi semua kelas makanan.", "Apakah maksud pemakanan yang seimbang?"),
        ("Rosmah Yaakob ialah bekas pengarah filem Melayu.", "Siapakah Rosmah Yaakob?"),
        ('"syer" ertinya suatu syer mengundi dalam sesebuah syarikat;', None),  # a list goes on
        ('"syer" ertinya suatu syer mengundi dalam sesebuah syarikat.', 'Apakah maksud "syer"?'),
        ("Malaysia mencapai kemerdekaan pada 31 Ogos 1957.", "Bilakah Malaysia mencapai kemerdekaan?"),
        ("Pada 16 September 1963, Persekutuan Malaysia diisytiharkan oleh Tunku Abdul Rahman.", "Bilakah Persekutuan Malaysia diisytiharkan oleh Tunku Abdul Rahman?"),
        ("Rimba Raid Taman Negara akan berlangsung di Kuala Tahan pada 24 September ini.", "Di manakah Rimba Raid Taman Negara akan berlangsung?"),
        ("Seramai 118 pelajar menerima anugerah khas di Dewan Merdeka.", "Berapa ramaikah pelajar yang menerima anugerah khas di Dewan Merdeka?"),
        ("Projek Lebuhraya Pan Borneo bernilai RM20 bilion.", "Berapakah nilai Projek Lebuhraya Pan Borneo?"),
        ("Penghasilan vaksin memakan masa yang lama kerana perlu melalui pelbagai fasa.", None),  # "masa yang" is a relative clause
        ("Jemaah Malaysia memenuhi wad hospital di Arab Saudi kerana tidak membuat persediaan secukupnya.", "Mengapakah Jemaah Malaysia memenuhi wad hospital di Arab Saudi?"),
        ("Program Bakti Negara bertujuan membantu petani di luar bandar.", "Apakah tujuan Program Bakti Negara?"),
        ("Buku Hikayat Abdullah ditulis oleh Munsyi Abdullah.", "Oleh siapakah Buku Hikayat Abdullah ditulis?"),
        ("Pencemaran udara boleh menyebabkan penyakit pernafasan.", "Apakah kesan pencemaran udara?"),
        ("Hakisan pantai berpunca daripada ombak kuat.", "Apakah punca hakisan pantai?"),
        ("Untuk mengelakkan kulit kering, pengguna perlu memakai pelembap setiap hari.", "Bagaimanakah cara untuk mengelakkan kulit kering?"),
        ("Mana-mana orang yang mencetak wang kertas palsu melakukan suatu kesalahan.", "Apakah hukuman bagi orang yang mencetak wang kertas palsu?"),
        ("Ketua Polis Daerah Kajang, Asisten Komisioner Ahmad Dzaffir Mohd. Yusoff mengesahkan kejadian itu.", "Siapakah Ketua Polis Daerah Kajang?"),
        ("KUALA LUMPUR 14 Ogos - Nicola Dutto adalah penunggang motosikal paraplegik pertama dalam Rali Dakar.", "Apakah penunggang motosikal paraplegik pertama dalam Rali Dakar?"),
    ],
)  # fmt: skip
def test_malay_sentences(sentence: str, question: str | None) -> None:
    assert _ask(sentence) == question


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("Plectostoma is a micro land snail restricted to limestone outcrops.", "What is Plectostoma?"),
        ("Usman Awang was a poet from Johor.", "Who was Usman Awang?"),
        ("Universiti Malaya was founded in 1949.", "When was Universiti Malaya founded?"),
        ("The Petronas Towers were built in Kuala Lumpur.", "Where were the Petronas Towers built?"),
        ("Sejarah Melayu was written by Tun Sri Lanang.", "By whom was Sejarah Melayu written?"),
        ("Patching refers to the mixing of two languages in one sentence.", "What is the meaning of Patching?"),
        ("The main objective of the Rukun Negara is to strengthen unity.", "What is the main objective of the Rukun Negara?"),
        ("Limestone hills are threatened because of quarrying for cement.", "Why are Limestone hills threatened?"),
        ('"share" means a share in the share capital of a corporation.', 'What is the meaning of "share"?'),
        ("The proposal is an attempt to settle the dispute.", None),
    ],
)  # fmt: skip
def test_english_sentences(sentence: str, question: str | None) -> None:
    assert _ask(sentence, "en") == question


def test_indonesian_asks_in_indonesian() -> None:
    assert _ask("Buku Max Havelaar diterbitkan pada tahun 1860.", "id") == "Kapan Buku Max Havelaar diterbitkan?"
    assert _ask("Abah Itab diamankan polisi karena tindak pidana berat.", "id") == "Mengapa Abah Itab diamankan polisi?"


@pytest.mark.parametrize(
    "sentence",
    [
        "Ia merupakan sebuah kumpulan muzik dari Korea.",  # who?
        "Program itu diadakan di Kuala Lumpur pada 2019.",  # which?
        "Beliau dilahirkan pada 3 Mac 1950.",
        "Kehadiran beliau pada 2018 disebabkan oleh jemputan kerajaan.",
        "Malaysia merupakan antara negara pengeluar sawit terbesar.",  # praise, no definition
        "Perkara ini adalah cabaran besar kepada negara.",
        "Mengapa harga naik pada 2019?",  # a question itself
        "Yang di atas merupakan satu proses biasa.",
        'Katanya, "Malaysia mencapai kemerdekaan pada 31 Ogos 1957".',
        "Mana-mana orang yang melanggar subseksyen (1) melakukan suatu kesalahan.",  # says nothing alone
        "Fasal 7 bertujuan untuk meminda seksyen 10.",  # of any bill
        "Tajuk Tanpa Noktah Pada Tahun 2019",
        "Datuk Ali menegaskan Malaysia tidak terlibat kerana polisi luar yang jelas.",  # whose reason?
    ],
)
def test_sentences_that_do_not_stand_alone_give_nothing(sentence: str) -> None:
    assert _ask(sentence) is None


@pytest.mark.parametrize(
    "sentence",
    [
        "It was founded in 1957.",
        "The meeting was held in 1957.",
        "This is a new system for teaching.",
        "The result was a surprise.",
        "He is the founder of the company.",
        "Migration is not new and Sabah is one of the states.",
    ],
)
def test_english_sentences_that_do_not_stand_alone(sentence: str) -> None:
    assert _ask(sentence, "en") is None


def test_a_study_is_asked_about_by_its_title() -> None:
    title = "Pembelajaran Atas Talian Bakal Guru"
    aim = "Kajian ini bertujuan menilai penggunaan pembelajaran atas talian."
    assert _ask(aim, "ms", title) == f"Apakah tujuan kajian {title}?"
    assert (
        _ask("Dapatan kajian menunjukkan bahawa guru bersedia.", "ms", title.upper())
        == f"Apakah dapatan kajian {title.lower()}?"
    )
    assert _ask("Penelitian ini bertujuan menilai guru di sekolah.", "id", title) == f"Apa tujuan penelitian {title}?"
    assert (
        _ask("This paper examines copular clauses in Malay.", "en", title)
        == f"What is the aim of the study on {title}?"
    )
    assert _ask(aim, "ms", "Pengenalan") is None and _ask(aim, "ms") is None  # no title that names it


def test_names_keep_their_capital_and_words_lose_it() -> None:
    text = "Isu cukai tidak boleh dipandang remeh di Malaysia kerana negara rugi besar. Semua isu lain kecil sahaja."
    assert extract(text, "ms")[0].question == "Mengapakah isu cukai tidak boleh dipandang remeh di Malaysia?"
    zahid = "Zahid bersiaran dari Bagan Datuk kerana hujan lebat turun."
    assert extract(zahid, "ms")[0].question.startswith("Mengapakah Zahid bersiaran")


def test_one_question_a_sentence_each_once_in_order() -> None:
    text = (
        "Malaysia mencapai kemerdekaan pada 31 Ogos 1957. Vaksinasi merupakan satu proses pembentukan imuniti. "
        "Malaysia mencapai kemerdekaan pada 31 Ogos 1957."
    )
    made = extract(text, "ms")
    assert [one.kind for one in made] == ["date", "definition"]
    assert all(one.sentence in text and re.fullmatch(r"\S.*\?", one.question) for one in made)


def test_other_languages_give_nothing_and_mixed_tries_both() -> None:
    assert of_sentence("Plectostoma is a micro land snail.", "zh") is None
    assert (
        extract("Plectostoma is a micro land snail. Vaksinasi merupakan satu proses imuniti.", "mixed")[1].kind
        == "definition"
    )
