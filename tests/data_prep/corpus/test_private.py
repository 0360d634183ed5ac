"""Personal data become placeholders; numbers, dates, prices and references that only look like them stay."""

from __future__ import annotations

import gzip
import json
import random
import re
import time
from pathlib import Path

import pytest

from data_prep.corpus.private import KINDS, PrivateConfig, Scrubber


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tengok https://www.moe.gov.my/berita?id=12 ya.", "tengok <URL> ya."),
        ("(lihat www.kkm.gov.my).", "(lihat <URL>)."),
        ("klik bit.ly/3abcD atau t.me/kelab_buku sekarang", "klik <URL> atau <URL> sekarang"),
        ("layari shopee.com.my, facebook.com/kedai.kita!", "layari <URL>, <URL>!"),
        ("https://ms.wikipedia.org/wiki/Kuih_(makanan) sedap", "<URL> sedap"),
        ("emel ali.bin-abu+kerja@gmail.com atau SITI@jpa.gov.my.", "emel <EMAIL> atau <EMAIL>."),
        ("RT @abu_bakar: setuju dgn @Siti99 & @kedai.buku.", "RT <USER>: setuju dgn <USER> & <USER>."),
        ("no kp 880214-14-5678 lahir KL", "no kp <IC> lahir KL"),
        ("IC 880214145678, sila semak", "IC <IC>, sila semak"),
        ("040229 01 1234 anak lahir tahun lompat", "<IC> anak lahir tahun lompat"),
        ("call 012-3456789 / 011-12345678", "call <PHONE> / <PHONE>"),
        ("whatsapp 0123456789 or 012 345 6789 or 012-345 6789", "whatsapp <PHONE> or <PHONE> or <PHONE>"),
        ("+60123456789, +60 12-345 6789, 60123456789, +6012-3456789", "<PHONE>, <PHONE>, <PHONE>, <PHONE>"),
        ("pejabat 03-8888 1234, 03-88881234, (03) 8888 1234", "pejabat <PHONE>, <PHONE>, <PHONE>"),
        ("Ipoh 05-255 1234, Kuching 082-423456, 082-345 678", "Ipoh <PHONE>, Kuching <PHONE>, <PHONE>"),
        ("dari Singapura +65 6123 4567 dan Jakarta +62 812-3456-7890", "dari Singapura <PHONE> dan Jakarta <PHONE>"),
        ("hubungi:0193334444", "hubungi:<PHONE>"),
        ("019-6003 8089, 0159-556 8797, +60 159-556 8797", "<PHONE>, <PHONE>, <PHONE>"),
    ],
)
def test_personal_data_are_replaced(text: str, expected: str) -> None:
    assert Scrubber()(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "Pada 31-12-2023 dan 01/02/2024, 2024-01-15 serta 15.03.1998 jam 10.30 pagi",
        "01-01-2024 03-05-2021 012024 20240115 bagi tahun 2019-2020",
        "Harga RM1,234,567.89, RM 0123456789 dan $12.50; naik 0.125 peratus, 3.14159265358979",
        "Seksyen 12(3)(b), subseksyen 4(1A), Akta 574, P.U.(A) 362/2007, Perkara 121(1A)",
        "ISBN 978-983-62-1234-5 dan ISBN 0198534531, ISSN 0126-5539",
        "No. resit 0123456789, akaun 112233445566, no akaun: 880214145678",
        "nombor 991332145678 bulan 13, 880231-14-5678 hari 31 Februari, 880214-00-5678 tempat 00",
        "penduduk 32,700,000 orang; 1 234 567 unit; 1234567890123456 digit",
        "lipstick@brand, jumpa @ 5pm, @5pm, @12, 3@RM10 dan a@b",
        "Syarikat Contoh Sdn. Bhd. (200601012345)",
        "Encik Ali.Dia pergi.My cat tidur. Versi 2.0.1 dan no.12, dll. Tamat.Sekian",
        "skor 3-1, nisbah 1:2:3, 10-20-30, bas 07-10, bilik 03-12, blok 05-3-21",
        "koordinat 3.1390,101.6869 dan MH370, QZ8501, KTM 2024, F1, 4G, 5G",
        "<URL> <EMAIL> <IC> <PHONE> <USER>",
        "#TeamMalaysia &amp; a+b=c, 100%, e-mel, u/c",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert Scrubber()(text) == (text, [])


def test_kinds_are_chosen_and_counted() -> None:
    text = "@ali kata 012-3456789 atau ali@mail.com di www.x.com"
    only = Scrubber(PrivateConfig(kinds=["phone"]))
    assert only(text)[0] == "@ali kata <PHONE> atau ali@mail.com di www.x.com"
    assert Scrubber(PrivateConfig(enabled=False))(text) == (text, [])
    assert [r.kind for r in Scrubber()(text)[1]] == ["url", "email", "phone", "user"]


def test_what_is_shown_is_masked() -> None:
    shown = Scrubber()("sila hubungi saya di 012-3456789 sebelum jam lima petang esok")[1][0].shown
    assert shown == "sila hubungi saya di [012-•••••••] sebelum jam lima petang esok"
    assert "3456789" not in shown


def test_twice_is_once() -> None:
    text = "RT @ali: 012-3456789, 880214-14-5678, a@b.com https://x.my/a"
    once = Scrubber()(text)[0]
    assert Scrubber()(once) == (once, [])


def test_random_numbers_rarely_pass_for_personal_ones() -> None:
    chance = random.Random(0)
    scrub = Scrubber()
    for digits, most in ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0.015), (12, 0.035), (13, 0), (16, 0)):
        found = [scrub(f"nombor {chance.randrange(10 ** (digits - 1), 10**digits)} ini")[1] for _ in range(3000)]
        assert sum(map(bool, found)) / 3000 <= most, digits


@pytest.mark.parametrize(
    "evil",
    ["a." * 50_000, "a@" * 50_000, "@" * 100_000, "0" * 100_000, "0-" * 50_000, "www." * 20_000, "a-" * 50_000 + "@"],
)
def test_no_pattern_is_slow_on_any_text(evil: str) -> None:
    started = time.process_time()
    Scrubber()(evil)
    assert time.process_time() - started < 5, "a pattern grows with the square of the text"


def test_real_corpora_hold_little_that_was_not_removed(shared_data: Path) -> None:
    """Their maker removed addresses, handles and numbers by patterns of another make; legal text cites many numbers."""
    scrub = Scrubber()
    for name in ("legal_ms", "news_ms"):
        with gzip.open(shared_data / "corpora" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            texts = [json.loads(line)["text"] for line, _ in zip(stream, range(3000), strict=False)]
        numbers = [r for t in texts for r in scrub(t)[1] if r.kind in ("ic", "phone")]
        assert len(numbers) <= 3, [r.shown for r in numbers[:10]]
    assert set(KINDS) == {re.sub(r"\W", "", k) for k in KINDS}
