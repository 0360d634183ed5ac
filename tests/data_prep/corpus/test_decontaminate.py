from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.corpus.decontaminate import DecontaminateConfig, Gate, check_training_text, training_texts
from data_prep.corpus.words import words_of
from data_prep.errors import UserError
from data_prep.shards import ShardWriter

WriteDocuments = Callable[[Path, Iterable[str]], Path]

ARTICLE = (
    "Kementerian Kesihatan mengesahkan bahawa sebanyak tiga puluh klinik desa di pedalaman Sabah akan dinaik taraf pada "
    "tahun hadapan dengan peruntukan dua puluh juta ringgit, kata menterinya selepas melawat hospital daerah di Ranau "
    "semalam bersama pegawai perubatan negeri."
)
QUESTION = "berapakah kos menaik taraf klinik desa di pedalaman Sabah tahun hadapan"
SHORT = "harga minyak naik lima sen"
PHRASE = "terima kasih"


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """One set: an article with a title, a short text, a long and three short queries."""
    return [
        write_set(
            tmp_path / "sets" / "berita",
            {"d1": ("Klinik desa dinaik taraf", ARTICLE), "d2": ("", SHORT), "d3": ("", "😂😂")},
            {"q1": QUESTION, "q2": PHRASE, "q3": "minum air kelapa muda setiap hari bagus tak"},
        )
    ]


def write_set(folder: Path, documents: dict[str, tuple[str, str]], queries: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps({"_id": k, "title": title, "text": text}) for k, (title, text) in documents.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": k, "text": t}) + "\n" for k, t in queries.items()))
    first = next(iter(documents))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{k}\t{first}\t1\n" for k in queries))
    return folder


def changed(text: str, share: float, *, seed: int = 0, how: str = "replace") -> str:
    """The text with a share of its words replaced, left out, or joined by others, at random places."""
    generator = np.random.default_rng(seed)
    words = text.split()
    for place in sorted(generator.choice(len(words), round(share * len(words)), replace=False).tolist(), reverse=True):
        if how == "replace":
            words[place] = f"ganti{place}"
        elif how == "leave out":
            del words[place]
        else:
            words.insert(place, f"tambah{place}")
    return " ".join(words)


FILLER = " ".join(f"isi{i} lain{i * 7 % 31}" for i in range(200))


@pytest.mark.parametrize(
    "text,kind,ident",
    [
        (ARTICLE, "exact", "d1"),
        (f"Klinik desa dinaik taraf\n{ARTICLE}", "exact", "d1"),
        (QUESTION, "exact", "q1"),
        (PHRASE, "exact", "q2"),
        ("😂😂", "exact", "d3"),
        (ARTICLE.upper(), "normalised", "d1"),
        (ARTICLE.replace(" ", "\n  "), "normalised", "d1"),
        (ARTICLE.replace(" ", ""), "normalised", "d1"),
        (ARTICLE.replace(",", "").replace(".", " !"), "normalised", "d1"),
        (QUESTION.title() + "?", "normalised", "q1"),
        ("".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in SHORT), "normalised", "d2"),
        ("\u200bTerima\u00adkasih!", "normalised", "q2"),
        (f"{FILLER} {ARTICLE} {FILLER}", "ngram", "d1"),
        (f"{FILLER}\n{ARTICLE[110:260]}\n{FILLER}", "ngram", "d1"),
        (f"{FILLER} Minum air kelapa muda setiap hari, bagus tak? {FILLER}", "ngram", "q3"),
        ("harga minyak turun lima sen", "near", "d2"),
        ("minum air kelapa muda tiap hari bagus ke", "near", "q3"),
        (f"Harga minyak naik lima sen\n{FILLER}", "normalised", "d2"),
        (f"Harga minyak turun lima sen\n{FILLER}", "near", "d2"),
        ("  Tajuk yang lain\nharga minyak naik\nlima sen!  ", "normalised", "d2"),
    ],
)
def test_a_planted_overlap_is_found_and_named(sets: list[Path], text: str, kind: str, ident: str) -> None:
    found = Gate(sets).find(text)
    assert found is not None
    assert (found.kind, found.set, found.id) == (kind, "berita", ident)
    assert found.part == ("query" if ident.startswith("q") else "document")
    assert 0.2 <= found.similarity <= 1 and found.words


@pytest.mark.parametrize("how", ["replace", "leave out", "add"])
@pytest.mark.parametrize("around", [("", ""), (FILLER, ""), (FILLER, FILLER), ("Tajuk lain\n", "")])
def test_a_copy_with_a_fifth_of_its_words_edited_is_found(sets: list[Path], how: str, around: tuple[str, str]) -> None:
    gate = Gate(sets)
    for seed in range(20):
        found = gate.find(" ".join((around[0], changed(ARTICLE, 0.2, seed=seed, how=how), around[1])))
        assert found is not None and found.id == "d1"
        assert found.kind in ("near", "ngram")


def test_every_fifth_word_changed_leaves_no_run_and_is_found(sets: list[Path]) -> None:
    words = ARTICLE.split()
    words[::5] = [f"ganti{i}" for i in range(len(words[::5]))]
    found = Gate(sets).find(" ".join(words))
    assert found is not None and found.kind == "near"
    assert found.similarity == pytest.approx(1 - len(words[::5]) / len(words))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!!",
        "ok",
        "terima kasih banyak",
        "Terima kasih kerana datang ke majlis kami, jumpa lagi nanti",
        "harga minyak turun enam sen",
        f"Terima kasih\n{FILLER}",
        f"harga minyak\n{FILLER}",
        f"Semalam harga minyak naik lima sen lagi. {FILLER}",  # under inside_words: a phrase, not a leak
        f"Orang kata minum air kelapa muda setiap hari memang bagus. {FILLER}",
        "Kementerian Kesihatan mengesahkan bahawa sebanyak tiga kes baharu dilaporkan di Johor semalam",
        " ".join(reversed(ARTICLE.split())),
        ARTICLE[:60],
    ],
)
def test_an_innocent_text_stays(sets: list[Path], text: str) -> None:
    assert Gate(sets).find(text) is None


def test_without_sets_nothing_is_found() -> None:
    gate = Gate([])
    assert len(gate) == 0
    assert gate.find("apa sahaja") is None


def test_formulas_of_many_documents_do_not_count(tmp_path: Path) -> None:
    formula = " ".join(f"rumus{i}" for i in range(20))
    bodies = {f"d{n}": ("", f"{formula} {' '.join(f'isi{n}x{i}' for i in range(30))}") for n in range(6)}
    folder = write_set(tmp_path / "undang", bodies, {"q": "apakah rumus yang digunakan di sini"})
    text = f"{formula} {FILLER}"
    assert Gate([folder]).find(text) is None
    found = Gate([folder], DecontaminateConfig(ngram_common=6)).find(text)
    assert found is not None and found.kind == "ngram" and found.similarity == pytest.approx(0.4)
    # what is a document's own still counts
    own = Gate([folder]).find(f"{FILLER} {' '.join(bodies['d3'][1].split()[20:40])}")
    assert own is not None and own.id == "d3"


def test_one_run_is_enough_where_the_share_is_zero(sets: list[Path]) -> None:
    run = " ".join(ARTICLE.split()[3:16])
    long = [write_set(sets[0].parent / "panjang", {"p": ("", f"{FILLER} {run} {FILLER}")}, {"q": "x y"})]
    text = f"satu dua {run} tiga empat"
    assert Gate(long).find(text) is None
    found = Gate(long, DecontaminateConfig(ngram_share=0.0)).find(text)
    assert found is not None and found.kind == "ngram" and found.words == " ".join(words_of(run).normal.split())
    # twelve words are no run of thirteen
    assert Gate(long, DecontaminateConfig(ngram_share=0.0)).find("satu " + " ".join(run.split()[:12])) is None


def test_texts_are_also_sought_as_cleaning_leaves_them(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "sosial", {"d": ("", "hubungi ali di ali@contoh.my esok")}, {"q": "siapa ali"})
    assert Gate([folder]).find("hubungi ali di <email> esok") is None
    found = Gate([folder], clean=lambda text: text.replace("ali@contoh.my", "<email>")).find(
        "hubungi ali di <email> esok"
    )
    assert found is not None and found.id == "d"


VOCABULARY = [f"kata{i}" for i in range(12)]


def fewest_edits(pattern: list[str], text: list[str], *, inside: bool) -> int:
    """Naive: fewest edits between the pattern and the text, or any stretch of it."""

    def distance(a: list[str], b: list[str]) -> int:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, start=1):
            before, row[0] = row[0], i
            for j, y in enumerate(b, start=1):
                before, row[j] = row[j], min(before + (x != y), row[j] + 1, row[j - 1] + 1)
        return row[-1]

    stretches = [text[a:b] for a in range(len(text) + 1) for b in range(a, len(text) + 1)] if inside else [text]
    return min(distance(pattern, s) for s in stretches)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_near_finds_what_all_alignments_find_and_no_more(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    words = st.sampled_from(VOCABULARY)
    pattern = data.draw(st.lists(words, min_size=5, max_size=22))
    text = list(pattern) if data.draw(st.booleans()) else data.draw(st.lists(words, max_size=10))
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, len(text)))
        what = data.draw(st.sampled_from(["replace", "leave out", "add"]))
        if what == "add":
            text.insert(place, data.draw(words))
        elif place < len(text):
            text[place : place + 1] = [] if what == "leave out" else [data.draw(words)]
    text = data.draw(st.lists(words, max_size=12)) + text + data.draw(st.lists(words, max_size=12))
    folder = write_set(tmp_path_factory.mktemp("set") / "s", {"d": ("", " ".join(pattern))}, {"q": "lain sekali"})
    found = Gate([folder], DecontaminateConfig(ngram_share=1.0)).find(" ".join(text))
    m = len(pattern)
    allowed = m // 4
    expected = False
    if m >= 13:
        expected = fewest_edits(pattern, text, inside=True) <= allowed
    else:
        if len(text) <= m + allowed:
            expected = fewest_edits(pattern, text, inside=False) <= allowed
        if m >= 8:
            expected |= fewest_edits(pattern, text, inside=True) == 0
    assert (found is not None) == expected
    if found is not None and found.kind == "near":
        assert found.similarity == pytest.approx(1 - fewest_edits(pattern, text, inside=m >= 13) / m)


def covered(pattern: list[str], text: list[str], size: int) -> float:
    """Naive: the share of the pattern's words that stand in a run of `size` words which the text holds too."""
    runs = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
    inside = {
        i + k for i in range(len(pattern) - size + 1) if tuple(pattern[i : i + size]) in runs for k in range(size)
    }
    return len(inside) / len(pattern)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ngram_covers_what_shared_runs_cover(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    words = st.sampled_from(VOCABULARY[:4])
    patterns = [data.draw(st.lists(words, min_size=20, max_size=50)) for _ in range(3)]
    pieces = []
    for _ in range(data.draw(st.integers(1, 4))):
        pattern = data.draw(st.sampled_from(patterns))
        start = data.draw(st.integers(0, len(pattern)))
        pieces += pattern[start : start + data.draw(st.integers(0, 20))] + data.draw(st.lists(words, max_size=3))
    documents = {f"d{i}": ("", " ".join(pattern)) for i, pattern in enumerate(patterns)}
    folder = write_set(tmp_path_factory.mktemp("set") / "s", documents, {"q": "lain sekali"})
    config = DecontaminateConfig(ngram_share=0.3, ngram_words=6, near=1.0)
    found = Gate([folder], config).find(" ".join(pieces))
    shares = {name: covered(pattern, pieces, 6) for name, pattern in zip(documents, patterns, strict=True)}
    if max(shares.values()) < 0.3:
        assert found is None
    else:
        assert found is not None
        if found.kind == "ngram":  # else: the same text
            assert found.similarity == pytest.approx(max(shares.values())) == pytest.approx(shares[found.id])


def test_find_keeps_nothing_between_texts(sets: list[Path]) -> None:
    gate = Gate(sets)
    texts = [changed(ARTICLE, share, seed=seed) for seed in range(10) for share in (0.1, 0.25, 0.4)] + [
        FILLER,
        SHORT,
        PHRASE,
    ]
    first = [gate.find(text) for text in texts]
    assert [gate.find(text) for text in reversed(texts)][::-1] == first == [Gate(sets).find(text) for text in texts]


def test_a_forgotten_text_is_passed_over_until_all_are_remembered(tmp_path: Path) -> None:
    folder = write_set(
        tmp_path / "s", {"a": ("Tajuk", ARTICLE), "b": ("", ARTICLE + "!"), "c": ("", SHORT)}, {"q": SHORT}
    )
    gate = Gate([folder])
    for text in (ARTICLE, changed(ARTICLE, 0.2), f"{FILLER} {ARTICLE}"):
        gate.remember()
        found = gate.find(text)
        assert found is not None and found.id == "a"
        assert {(part, ident) for _, part, ident in gate.forget(found)} == {("document", "a"), ("document", "b")}
        assert gate.find(text) is None
        short = gate.find(SHORT)
        assert short is not None and (short.part, short.id) == ("query", "q")
        assert {(part, ident) for _, part, ident in gate.forget(short)} == {("query", "q"), ("document", "c")}
        assert gate.find(SHORT) is None


def test_the_last_check_fails_and_names_what_repeats_what(sets: list[Path], tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "pairs", "pairs") as writer:
        writer.append({"query": "soalan baharu", "positives": ["jawapan baharu"], "negatives": [], "source": "a"})
        writer.append(
            {
                "query": "soalan lain",
                "positives": ["jawapan lain"],
                "negatives": [FILLER, ARTICLE.upper()],
                "source": "b",
            }
        )
        writer.append({"query": QUESTION + " ya", "positives": ["x"], "negatives": [], "source": "c"})
    with pytest.raises(UserError) as raised:
        check_training_text(training_texts(tmp_path / "pairs", "pairs", "mined pairs"), Gate(sets))
    told = str(raised.value)
    assert "mined pairs row 1 (source b), negative 1 repeats document d1 of berita (normalised, 1.00)" in told
    assert "mined pairs row 2 (source c), query repeats query q1 of berita (near, 0.91)" in told
    assert "2 of 8 training texts" in told and "Fix:" in told and "\n" not in told


def test_the_last_check_passes_clean_text_and_counts_it(
    sets: list[Path], tmp_path: Path, write_documents: WriteDocuments
) -> None:
    folder = write_documents(tmp_path / "documents", [FILLER, "terima kasih banyak", FILLER])
    assert check_training_text(training_texts(folder, "documents", "corpus"), Gate(sets)) == 3


def test_the_last_check_names_a_few_and_counts_all(sets: list[Path]) -> None:
    texts = [(f"row {i}", ARTICLE) for i in range(40)]
    with pytest.raises(UserError, match=r"row 0 .*row 2 .*and 37 more.*40 of 40") as raised:
        check_training_text(texts, Gate(sets), shown=3)
    assert len(str(raised.value)) < 1200


@pytest.mark.parametrize(
    "field,value", [("near", 0.5), ("ngram_words", 3), ("on_overlap", "ignore"), ("whole_words", 2)]
)
def test_settings_that_cannot_work_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        DecontaminateConfig.model_validate({field: value})


def test_a_folder_that_is_no_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.jsonl"):
        Gate([tmp_path])
