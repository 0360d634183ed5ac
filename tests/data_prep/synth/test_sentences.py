from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.synth.sentences import sentence_spans, sentences

PIECES = [
    "Kerajaan ",
    "Dr. ",
    "Mohd. Ali",
    ". ",
    ".\n",
    "\n",
    "\n\n",
    "(a) ",
    "; ",
    "—",
    "3. ",
    "Akta ",
    "kata",
    "?",
    "!",
    " ",
    "你好。",
    "RM1.5 juta",
    '"',
    "...",
    "\t",
    "NASA",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_spans_tile_the_text(text: str) -> None:
    spans = sentence_spans(text)
    assert "".join(text[start:stop] for start, stop in spans) == text
    assert all(start < stop for start, stop in spans)
    assert sum(bool(text[start:stop].strip()) for start, stop in spans) == len(sentences(text)) or not text.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Datuk Dr. Mohd. Ali tiba. Beliau disambut En. Tan pada 8 Okt. lalu.",
            ["Datuk Dr. Mohd. Ali tiba.", "Beliau disambut En. Tan pada 8 Okt. lalu."],
        ),
        ("PORT DICKSON 8 Okt. - Calon itu menang. Katanya, A. Samad hadir.", ["PORT DICKSON 8 Okt. - Calon itu menang.", "Katanya, A. Samad hadir."]),
        ("Harganya RM1.5 juta. No. 5 dijual Syarikat ABC Sdn. Bhd. semalam.", ["Harganya RM1.5 juta.", "No. 5 dijual Syarikat ABC Sdn. Bhd. semalam."]),
        ("Apa? Tidak! Ya… Baik.", ["Apa?", "Tidak!", "Ya…", "Baik."]),
        ('"Apa khabar?" tanya Ali. Dia diam.', ['"Apa khabar?" tanya Ali.', "Dia diam."]),
        ("Perkara biasa.Mohamad Ariff berkata.Ia betul.", ["Perkara biasa.", "Mohamad Ariff berkata.", "Ia betul."]),
        (
            "3. Menteri boleh—\n(a) melantik pegawai;\n(b) membatalkan lesen; dan\n(c) membuat peraturan.\n4. Akta ini terpakai.",
            ["3. Menteri boleh—\n(a) melantik pegawai;\n(b) membatalkan lesen; dan\n(c) membuat peraturan.", "4. Akta ini terpakai."],
        ),
        ("Pihak Berkuasa Negeri yang\nmengeluarkan perakuan.\nTajuk Baharu\nTeks.", ["Pihak Berkuasa Negeri yang\nmengeluarkan perakuan.", "Tajuk Baharu", "Teks."]),
        ("satu ayat panjang\n\nayat lain", ["satu ayat panjang", "ayat lain"]),
        ("你好。再见！谢谢", ["你好。", "再见！", "谢谢"]),
    ],
)  # fmt: skip
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_empty() -> None:
    assert sentence_spans("") == [] and sentences(" \n ") == []
