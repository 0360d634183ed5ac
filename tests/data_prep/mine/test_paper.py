"""The preset `paper` against the procedure of arXiv 2402.03053, written here a second time and plainly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from data_prep.embed.teacher import TeacherConfig, load_teacher
from data_prep.embed.vectors import ArrayVectors
from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.mine.config import MineConfig
from data_prep.mine.mine import mine_pairs
from data_prep.mine.policy import PAPER_CUTS, Policy
from data_prep.mine.select import Mined
from data_prep.mine.sides import side_of
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter

NEAR, FAR = 0.3, 1.37
LANGUAGES = ("left", "en", "ms")


@pytest.fixture
def views(tmp_path: Path, topics: Any) -> Path:
    """150 texts in three renderings each; some lack the English one, some renderings are equal but for case."""
    with ShardWriter(tmp_path / "documents", "documents") as writer:
        for number, text in enumerate(topics(150, words=60)):
            body = text.partition("\n")[2]
            for language in LANGUAGES:
                if language == "en" and number % 7 == 0:
                    continue
                rendered = body if language == "left" else f"{body} {language}"
                if language == "ms" and number % 5 == 0:
                    rendered = body.upper()
                row = {"text": rendered, "source": "forum", "language": language, "document": f"post-{number}"}
                writer.append({"id": content_id(f"{number}{language}{rendered}"), **row})
    return tmp_path


def _mine(folder: Path, name: str, seed: int = 0, **policy: Any) -> dict[str, int | float]:
    config = MineConfig(
        teacher=TeacherConfig(dimension=12), neighbors=10,
        policy=Policy(**{"preset": "paper", "positive_max_distance": NEAR, "negative_distances": [FAR], **policy}),
    )  # fmt: skip
    return mine_pairs(config, documents=folder / "documents", out=folder / name, seed=seed, progress=Progress())


def _groups(folder: Path) -> dict[str, dict[str, str]]:
    """Document → language → text."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for row in Shards(folder / "documents", "documents"):
        groups[row["document"]][row["language"]] = row["text"]
    return groups


def _distances(folder: Path, name: str, groups: dict[str, dict[str, str]]) -> np.ndarray:
    """[texts, texts] Euclidean, of the English view or else the first."""
    stand_for = [views.get("en", next(iter(views.values()))) for views in groups.values()]
    vectors = load_teacher(folder / name / "teacher").embed(stand_for, role="passage").astype(np.float64)
    return cdist(vectors, vectors)


def _naive(
    distances: np.ndarray, groups: list[dict[str, str]], drawn: dict[int, tuple[list[int], list[int]]]
) -> list[tuple[str, list[str], list[str]]]:
    """The paper's rows, with the draws that are given where it would draw at random."""
    rows = []
    for i in range(len(groups)):
        positives = np.flatnonzero(distances[i] <= NEAR).tolist()
        negatives = np.flatnonzero(distances[i] > FAR).tolist()
        assert i in positives
        if i not in drawn:
            assert not negatives or len([v for j in positives for v in groups[j].values()]) == 1
            continue
        chosen, far = drawn[i]
        others = [j for j in positives if j != i]
        if len(others) > 4:
            assert len(chosen) == 4 and set(chosen) <= set(others)
        else:
            assert sorted(chosen) == others
        if len(negatives) > 5:
            assert len(far) == 5 and set(far) <= set(negatives)
        else:
            assert sorted(far) == negatives
        for view in groups[i].values():
            pos: dict[str, str] = {}
            neg: dict[str, str] = {}
            for j in [i, *chosen]:
                for text in groups[j].values():
                    pos.setdefault(text.lower(), text)
            for j in far:
                for text in groups[j].values():
                    neg.setdefault(text.lower(), text)
            kept = [text for text in pos.values() if text != view]
            if kept and neg:
                rows.append((view, kept, list(neg.values())))
    return rows


def test_the_procedure_of_the_paper(views: Path) -> None:
    counts = _mine(views, "mine")
    groups = _groups(views)
    distances = _distances(views, "mine", groups)
    off = np.abs(distances[..., None] - np.array([NEAR, FAR])).min()
    assert off > 1e-6  # no distance lies so near a cut-off that rounding decides
    rows = list(Shards(views / "mine" / "pairs", "pairs"))
    place = {text: n for n, group in enumerate(groups.values()) for text in group.values()}
    drawn: dict[int, tuple[list[int], list[int]]] = {}
    for row in rows:
        own = place[row["query"]]
        chosen = list(dict.fromkeys(place[text] for text in row["positives"] if place[text] != own))
        far = list(dict.fromkeys(place[text] for text in row["negatives"]))
        assert drawn.setdefault(own, (chosen, far)) == (chosen, far)  # every view of a text has the same draw
    expected = _naive(distances, list(groups.values()), drawn)
    assert sorted((r["query"], tuple(sorted(r["positives"])), tuple(sorted(r["negatives"]))) for r in rows) == sorted(
        (query, tuple(sorted(positives)), tuple(sorted(negatives))) for query, positives, negatives in expected
    )
    assert counts["pairs"] == len(rows) > 200
    document = {row["text"]: row["document"] or row["id"] for row in Shards(views / "documents", "documents")}
    for row in rows:
        assert row["query_document"] == document[row["query"]]
        for side in ("positive", "negative"):
            assert row[f"{side}_documents"] == [document[text] for text in row[f"{side}s"]]
    assert any(len(chosen) == 4 for chosen, _ in drawn.values()) and any(len(c) < 4 for c, _ in drawn.values())
    assert any(len(far) == 5 for _, far in drawn.values())
    # a text without any far text is dropped, as theirs was
    nobody = np.flatnonzero(~(distances > FAR).any(axis=1))
    assert not set(nobody.tolist()) & set(drawn)
    # every view that gives no row is counted
    asked = sum(len(group) for n, group in enumerate(groups.values()) if n not in nobody)
    refused = counts["refused_view_without_positive"] + counts["refused_view_without_negative"]
    assert counts["pairs"] + refused == asked
    alone = _mine(views, "alone", positive_max_distance=1e-4)  # nobody is near: views of the text itself are left
    refused = alone["refused_view_without_positive"] + alone["refused_view_without_negative"]
    assert alone["pairs"] + refused == asked and refused > 0


def test_the_cut_offs_of_every_corpus() -> None:
    for name, (near, far, _) in PAPER_CUTS.items():
        policy = Policy(preset="paper", paper_corpus=name)
        assert (policy.positive_max_distance, policy.negative_distances) == (near, [far])
    policy = Policy(preset="paper")
    assert (policy.positive_max_distance, policy.negative_distances) == (0.6, [0.9])  # Malay news
    assert policy.positives_per_query == policy.negatives_per_query == 5
    assert Policy.model_validate(policy.model_dump()) == policy


def test_distances_of_the_other_scale_are_refused(views: Path) -> None:
    config = MineConfig(
        teacher=TeacherConfig(dimension=12), neighbors=10, policy=Policy(preset="paper", paper_corpus="twitter")
    )
    with pytest.raises(UserError, match="paper_corpus = 'twitter': its distances are of another scale"):
        mine_pairs(config, documents=views / "documents", out=views / "x", seed=0, progress=Progress())


def test_no_text_far_enough_names_the_distances_there_are(views: Path) -> None:
    with pytest.raises(
        UserError, match=r"negative_distances = \[1.99\]: is empty for every query: 98 % of the distances lie between"
    ):
        _mine(views, "far", negative_distances=[1.99])


def test_vectors_that_were_not_normalised(mine_side: Callable[..., Mined]) -> None:
    """The other scale: long vectors, and cut-offs of 8 and 15."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(4, 24)) * 2.2
    vectors = (centres[generator.integers(0, 4, 200)] + 1.2 * generator.normal(size=(200, 24))).astype(np.float32)
    texts = [f"teks {n}" for n in range(200)]
    side = side_of(
        texts, ArrayVectors(vectors, normalised=False), documents=np.arange(1, 201, dtype=np.uint64),
        languages=["en"] * 200, sketches=False,
    )  # fmt: skip
    mined = mine_side(side, texts, Policy(preset="paper", paper_corpus="twitter"))
    distances = cdist(vectors.astype(np.float64), vectors.astype(np.float64))
    assert np.abs(distances[..., None] - np.array([8.0, 15.0])).min() > 1e-6
    for row in range(200):
        near = np.flatnonzero((distances[row] <= 8) & (np.arange(200) != row)).tolist()
        far = np.flatnonzero(distances[row] > 15).tolist()
        for drawn, there, most in ((mined.positives[row], near, 4), (mined.negatives[row], far, 5)):
            kept = [n for n in drawn.tolist() if n >= 0]
            assert set(kept) <= set(there) and len(set(kept)) == len(kept) == min(most, len(there))
        assert mined.kept[row] == bool(far)
    assert mined.kept.sum() > 50
    # scores are cosines all the same
    row = int(np.flatnonzero(mined.kept)[0])
    one, other = vectors[row], vectors[mined.negatives[row, 0]]
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert mined.negative_scores[row, 0] == pytest.approx(cosine, abs=1e-5)
    with pytest.raises(UserError, match="vectors of this teacher are not normalised"):
        mine_side(side, texts, Policy(preset="paper", paper_corpus="hansard"))
    with pytest.raises(UserError, match="scores are cosines of normalised vectors"):
        mine_side(side, texts, Policy())
