from __future__ import annotations

import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.corpus.keys import text_key
from data_prep.corpus.near import EXACT, KEPT, NEAR, NearConfig, SignatureWriter, find_duplicates
from data_prep.errors import UserError
from data_prep.progress import Progress

WORDS = ("nasi", "lemak", "akta", "seksyen", "mahkamah", "hakim", "bola", "gol", "liga", "piala", "ubat", "demam")


@functools.cache
def shingles(text: str, size: int = 3) -> set[tuple[str, ...]]:
    """Naive: the sets that a signature stands for."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} if words else set()


def jaccard(first: str, second: str) -> float:
    a, b = shingles(first), shingles(second)
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if a or b else 0.0


def copies(count: int, *, seed: int, words: int = 60) -> list[str]:
    """Texts of which about half are earlier ones with some words changed, in random order of arrival."""
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    for number in range(count):
        if texts and generator.random() < 0.6:
            row = texts[int(generator.integers(len(texts)))].split()
            for place in generator.choice(len(row), int(generator.integers(0, 4)), replace=False):
                row[int(place)] = f"lain{number}"
        else:
            row = [
                f"{WORDS[int(k)]}{int(j)}"
                for k, j in zip(generator.integers(12, size=words), generator.integers(90, size=words), strict=True)
            ]
        texts.append(" ".join(row))
    return texts


def judge(
    folder: Path, texts: Sequence[str], config: NearConfig, *, cuts: Sequence[int] = ()
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Verdicts and the row in the whole corpus that is repeated, over parts cut at `cuts`."""
    bounds = [0, *cuts, len(texts)]
    folders = [folder / f"part{i}" for i in range(len(bounds) - 1)]
    for part, start, end in zip(folders, bounds, bounds[1:], strict=False):
        with SignatureWriter(part, config) as writer:
            for text in texts[start:end]:
                writer.add(text)
    find_duplicates(folders, config, folder / "scratch", Progress())
    assert os.listdir(folder / "scratch") == []
    verdict = np.concatenate([np.load(part / "verdict.npy") for part in folders])
    of = np.concatenate([np.load(part / "of.npy") for part in folders])
    assert verdict.dtype == np.uint8 and of.shape == (len(texts), 2)
    return verdict, np.where(of[:, 0] >= 0, np.asarray(bounds)[of[:, 0]] + of[:, 1], -1)


def test_near_copies_agree_with_all_pairs(tmp_path: Path) -> None:
    texts = copies(400, seed=1)
    config = NearConfig(permutations=512)  # standard error at 0.8: 0.018
    verdict, of = judge(tmp_path, texts, config)
    seen: dict[str, int] = {}
    for row, text in enumerate(texts):
        first = seen.setdefault(text_key(text), row)
        assert (verdict[row] == EXACT) == (first != row)
        assert of[row] == first or verdict[row] != EXACT
    distinct = [row for row in range(len(texts)) if verdict[row] != EXACT]
    removed_above = removed = kept_above = 0
    for row in distinct:
        before = [other for other in distinct if other < row and verdict[other] == KEPT]
        nearest = max((jaccard(texts[row], texts[other]) for other in before), default=0.0)
        if verdict[row] == NEAR:
            removed += 1
            assert verdict[of[row]] == KEPT and of[row] < row
            assert jaccard(texts[row], texts[of[row]]) > 0.8 - 5 * 0.018
            removed_above += nearest >= 0.8
        else:
            kept_above += nearest >= 0.8 + 3 * 0.018
            assert nearest < 0.8 + 5 * 0.018
    assert removed > 60 and removed_above > 0.8 * removed
    assert kept_above == 0


def test_no_chain_removes_what_is_far_from_all_that_stays(tmp_path: Path) -> None:
    # each text is near to the one before it; the last shares nothing with the first
    words = [f"kata{i}" for i in range(400)]
    texts = [" ".join(words[4 * i : 4 * i + 80]) for i in range(60)]
    verdict, of = judge(tmp_path, texts, NearConfig(permutations=512))
    assert 10 < (verdict == KEPT).sum() < 50
    for row in np.flatnonzero(verdict == NEAR):
        assert verdict[of[row]] == KEPT
        assert jaccard(texts[row], texts[of[row]]) > 0.7


@pytest.mark.parametrize("cuts", [(1, 2, 3), (130,), (0, 299, 299), tuple(range(10, 300, 10))])
def test_parts_and_memory_change_nothing(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    texts = copies(300, seed=2)
    whole = judge(tmp_path / "whole", texts, NearConfig())
    small = judge(tmp_path / "small", texts, NearConfig(memory_gb=3e-5), cuts=cuts)  # 30 kB: dozens of partitions
    assert (whole[0] == NEAR).sum() > 30 and (whole[0] == EXACT).sum() > 10
    for first, second in zip(whole, small, strict=True):
        assert np.array_equal(first, second)


def test_what_does_not_carry_meaning_does_not_count(tmp_path: Path) -> None:
    texts = [
        "Harga minyak naik lagi!",
        "harga  MINYAK\nnaik lagi!",
        "Harga, minyak; naik - lagi?",
        "harga minyak turun lagi",
    ]
    verdict, of = judge(tmp_path, texts, NearConfig())
    assert verdict.tolist() == [KEPT, EXACT, NEAR, KEPT]
    assert of.tolist() == [-1, 0, 0, -1]


def test_texts_without_words_are_compared_by_key_only(tmp_path: Path) -> None:
    verdict, _ = judge(tmp_path, ["😂😂😂", "!!!", "😂😂😂", "", "…"], NearConfig())
    assert verdict.tolist() == [KEPT, KEPT, EXACT, KEPT, KEPT]


def test_without_near_copies_only_exact_ones_go(tmp_path: Path) -> None:
    verdict, _ = judge(tmp_path, ["satu dua tiga", "satu dua tiga!", "Satu dua  tiga"], NearConfig(enabled=False))
    assert verdict.tolist() == [KEPT, KEPT, EXACT]


@pytest.mark.parametrize("texts", [[], ["hanya satu"]])
def test_hardly_any_text(tmp_path: Path, texts: list[str]) -> None:
    verdict, of = judge(tmp_path, texts, NearConfig(), cuts=(0,))
    assert (verdict == KEPT).all() and (of == -1).all()


def test_a_bucket_of_one_form_stays_quick(tmp_path: Path) -> None:
    # 3,000 texts that share 60 % of their shingles fill the same buckets with texts that are all kept
    form = " ".join(f"borang{i}" for i in range(80))
    texts = [f"{form} {' '.join(f'isi{n}x{i}' for i in range(25))}" for n in range(3000)]
    verdict, _ = judge(tmp_path, texts, NearConfig())
    assert (verdict == KEPT).mean() > 0.99


@pytest.mark.parametrize("threshold,recall", [(0.5, 0.9), (0.8, 0.99), (0.9, 0.999), (1.0, 0.9)])
def test_bands_reach_their_recall(threshold: float, recall: float) -> None:
    config = NearConfig(threshold=threshold, recall=recall)
    bands, rows = config.bands()
    assert bands * rows <= config.permutations
    assert 1 - (1 - threshold**rows) ** bands >= recall
    longer = config.permutations // (rows + 1)
    assert longer == 0 or 1 - (1 - threshold ** (rows + 1)) ** longer < recall


def _damage(folder: Path, name: str, how: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[:-5]
    elif how == "flip":
        data[len(data) // 2] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["keys.bin", "signatures.bin"])
@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, how: str) -> None:
    judge(tmp_path, copies(20, seed=3), NearConfig())
    _damage(tmp_path / "part0", name, how)
    with pytest.raises(UserError, match=name) as raised:
        find_duplicates([tmp_path / "part0"], NearConfig(), tmp_path / "scratch", Progress())
    assert "Fix:" in str(raised.value)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    judge(tmp_path, ["satu dua tiga"], NearConfig())
    with pytest.raises(UserError, match="shingle_words"):
        find_duplicates([tmp_path / "part0"], NearConfig(shingle_words=2), tmp_path / "scratch", Progress())


def test_a_part_that_failed_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), SignatureWriter(tmp_path / "part", NearConfig()) as writer:
        writer.add("satu dua tiga")
        raise RuntimeError("boom")
    with pytest.raises(UserError, match=r"signatures\.json"):
        find_duplicates([tmp_path / "part"], NearConfig(), tmp_path / "scratch", Progress())


def test_verdicts_do_not_depend_on_the_process(tmp_path: Path) -> None:
    # a recorded digest of the signatures: another hash of words or another rensa would change stored corpora in silence
    with SignatureWriter(tmp_path, NearConfig()) as writer:
        for text in ("Harga minyak naik lima sen", "我们都喜欢吃椰浆饭", "நீங்கள் எப்படி இருக்கிறீர்கள்", "ok"):
            writer.add(text)
    digests: dict[str, Any] = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16] for name in ("keys.bin", "signatures.bin")
    }
    assert digests == {"keys.bin": "1d322dda77367571", "signatures.bin": "2c2149f4879b9055"}
