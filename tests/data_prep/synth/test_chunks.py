from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.progress import Progress
from data_prep.synth.chunks import Chunk, ChunksConfig, Ruler, cut
from data_prep.synth.sentences import sentence_spans
from data_prep.tokenizer import TokenizerConfig, train_tokenizer

WORDS = ["akta", "menteri", "lesen", "Kuala", "Lumpur", "kerajaan", "negeri", "RM20", "tahun", "dan"]
ACT = (
    "RANG UNDANG-UNDANG FRANCAIS\nBAHAGIAN I\nPERMULAAN\n1. Akta ini bolehlah dinamakan Akta Francais.\n"
    "2. Dalam Akta ini, melainkan jika konteksnya menghendaki makna yang lain, perkataan mempunyai makna biasa.\n"
    "BAHAGIAN II\nPENDAFTARAN\n3. (1) Francaisor hendaklah mendaftarkan francaisnya.\n"
    "(2) Mana-mana orang yang melanggar subseksyen (1) melakukan suatu kesalahan.\n"
    "4. Pendaftar boleh—\n(a) meluluskan permohonan itu;\n(b) menolak permohonan itu; atau\n"
    "(c) meminta maklumat lanjut daripada pemohon itu."
)


def _cut(text: str, **config: object) -> list[Chunk]:
    made = ChunksConfig(**config)  # type: ignore[arg-type]
    return cut(text, made, Ruler(made), document="d" * 32)


@st.composite
def documents(draw: st.DrawFn) -> str:
    ends = [". ", ".\n", "\n", "\n\n", "? ", ";\n(a) ", " "]
    sentence = st.lists(st.sampled_from(WORDS), min_size=1, max_size=25).map(" ".join)
    pairs = draw(st.lists(st.tuples(sentence, st.sampled_from(ends)), min_size=1, max_size=25))
    return "".join(text[0].upper() + text[1:] + end for text, end in pairs)


@settings(max_examples=150, deadline=None)
@given(documents(), st.integers(1, 12), st.integers(0, 30), st.integers(0, 10), st.integers(0, 6))
def test_chunks_tile_the_document_and_keep_their_limits(
    text: str, least: int, more: int, overlap: int, above: int
) -> None:
    target = least + more
    config = ChunksConfig(
        tokens_per_word=1.0, min_tokens=least, target_tokens=target, max_tokens=target + overlap + above,
        overlap_tokens=overlap,
    )  # fmt: skip
    ruler = Ruler(config)
    chunks = cut(text, config, ruler, document="ab" * 16)
    assert "".join(text[chunk.start : chunk.stop] for chunk in chunks) == text
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    sizes = [ruler.lay(text).size(chunk.start, chunk.stop) for chunk in chunks]
    room = target + above
    assert all(size <= room for size in sizes)
    assert all(ruler.lay(chunk.text).size(0, len(chunk.text)) <= config.max_tokens for chunk in chunks)
    for left, right in itertools.pairwise(sizes):
        if min(left, right) < least:  # what is too short could not be joined
            assert left + right > room
    starts = {start for start, _ in sentence_spans(text)}
    lengths = {start: ruler.lay(text).size(start, stop) for start, stop in sentence_spans(text)}
    for chunk in chunks:
        inside = max(start for start in starts if start <= chunk.start)
        assert chunk.start in starts or lengths[inside] > room  # a cut inside a sentence: it alone is too long
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    assert chunks == cut(text, config, ruler, document="ab" * 16)
    if len(chunks) == 1:
        assert chunks[0].id == "ab" * 16


def test_structure_of_an_act() -> None:
    chunks = _cut(ACT, tokens_per_word=1.0, target_tokens=24, max_tokens=40, min_tokens=8)
    assert [chunk.text.partition("\n")[0] for chunk in chunks] == [
        "RANG UNDANG-UNDANG FRANCAIS",
        "BAHAGIAN II",
        "4. Pendaftar boleh—",
    ]
    assert chunks[-1].text.endswith("daripada pemohon itu.")
    assert chunks[-1].titles == ("RANG UNDANG-UNDANG FRANCAIS", "BAHAGIAN II", "PENDAFTARAN")
    assert not any(chunk.text.rstrip().endswith(("BAHAGIAN II", "PENDAFTARAN")) for chunk in chunks)


def test_a_long_list_is_cut_at_its_items() -> None:
    text = "4. Pendaftar boleh—\n" + "\n".join(
        f"({letter}) menimbangkan perkara nombor {letter} dengan teliti;" for letter in "abcdefgh"
    )
    chunks = _cut(text, tokens_per_word=1.0, target_tokens=14, max_tokens=18, min_tokens=4)
    assert len(chunks) > 2
    assert all(chunk.text.startswith(("4.", "(")) for chunk in chunks)


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("# Satu\nAyat pertama di sini ada.\n## Dua\nAyat kedua di sini ada.", ["# Satu", "## Dua"]),
        ("Ayat pertama bagi pengguna di sini.\n---\nAyat kedua pula ada di sini.", ["Ayat pertama bagi pengguna di sini.", "---"]),
        ("Ayat pengenalan yang lengkap ada.\nKandungan Pemakanan\nSusu ini mengandungi kalsium yang banyak.", ["Ayat pengenalan yang lengkap ada.", "Kandungan Pemakanan"]),
    ],
)  # fmt: skip
def test_headings_and_posts_open_chunks(text: str, heads: list[str]) -> None:
    chunks = _cut(text, tokens_per_word=1.0, target_tokens=6, max_tokens=12, min_tokens=3)
    assert [chunk.text.partition("\n")[0] for chunk in chunks] == heads


def test_overlap_repeats_whole_sentences_and_prefix_names_the_place() -> None:
    text = "Tajuk Dokumen Ujian\n" + " ".join(f"Ayat nombor {n} berakhir di sini." for n in range(12))
    plain = _cut(text, tokens_per_word=1.0, target_tokens=20, max_tokens=30, min_tokens=5)
    both = _cut(
        text,
        tokens_per_word=1.0,
        target_tokens=20,
        max_tokens=44,
        min_tokens=5,
        overlap_tokens=6,
        prefix_title=True,
        title_tokens=8,
    )
    assert [(c.start, c.stop) for c in plain] == [(c.start, c.stop) for c in both]
    for before, chunk in itertools.pairwise(both):
        last = before.text.rpartition("Ayat")[2]
        assert chunk.text.startswith("Ayat" + last) and chunk.prefix == "Tajuk Dokumen Ujian\n"
    assert both[0].prefix == ""


def test_a_long_title_is_cut_in_the_prefix() -> None:
    text = " ".join(["Tajuk"] * 20) + "\n" + " ".join(f"Ayat nombor {n} berakhir di sini." for n in range(12))
    chunks = _cut(
        text, tokens_per_word=1.0, target_tokens=20, max_tokens=40, min_tokens=5, prefix_title=True, title_tokens=4
    )
    assert chunks[1].prefix == "Tajuk Tajuk Tajuk Tajuk\n"


def test_texts_without_spaces_and_white_space_alone() -> None:
    chinese = _cut("马来西亚是一个国家" * 30, tokens_per_word=1.0, target_tokens=50, max_tokens=60, min_tokens=10)
    assert len(chinese) == 5 and "".join(c.text for c in chinese) == "马来西亚是一个国家" * 30
    assert len(_cut("x" * 5000, tokens_per_word=1.0, target_tokens=50, max_tokens=60, min_tokens=10)) > 3
    assert _cut(" \n\n ") == []


def test_a_tokenizer_counts(tmp_path: Path, write_documents: object, topics: object) -> None:
    texts = topics(60)  # type: ignore[operator]
    write_documents(tmp_path / "documents", texts)  # type: ignore[operator]
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    train_tokenizer(TokenizerConfig(vocab_size=400), documents=tmp_path / "documents", out=folder, progress=Progress())
    config = ChunksConfig(tokenizer=str(folder), target_tokens=40, max_tokens=60, min_tokens=5)
    ruler = Ruler(config)
    from data_prep.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    for text in texts[:8]:
        chunks = cut(text, config, ruler, document="c" * 32)
        assert "".join(text[c.start : c.stop] for c in chunks) == text and len(chunks) > 1
        for chunk in chunks:
            tokens = len(tokenizer(chunk.text, add_special_tokens=False)["input_ids"])
            assert tokens <= 60 + 2  # a chunk's first word may be cut otherwise when it opens the text


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="must hold"):
        ChunksConfig(target_tokens=600)
    with pytest.raises(ValidationError, match="must hold"):
        ChunksConfig(overlap_tokens=300)
    with pytest.raises(UserError, match="holds no tokenizer"):
        Ruler(ChunksConfig(tokenizer=str(tmp_path)))
