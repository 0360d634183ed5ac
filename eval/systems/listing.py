"""Which systems a recipe compares, each loaded only when its turn comes.

Invariant: making the list loads nothing. A system that is asked for but whose folder is missing is an error, never a
row that is quietly absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_prep.errors import UserError
from eval.systems.bm25 import BM25_B, BM25_K1, BM25Ranker
from eval.systems.dense import PACKAGE_PREFIX, DenseRanker, SentenceTransformerEmbedder
from eval.systems.ranker import Ranker

if TYPE_CHECKING:
    from eval.retrieval import EvalConfig
    from train.encoder import EncoderConfig

SystemKind = Literal["bm25", "baseline", "teacher", "untrained", "pretrained", "finetuned"]


@dataclass(frozen=True)
class System:
    """One thing to measure.

    Attributes:
        name: unique in an evaluation; names rows and rank files.
        kind: its part in the story; the report compares `finetuned` with all others.
        detail: one line on what it is.
        load: makes the ranker; called once, and the ranker is dropped before the next system loads.
    """

    name: str
    kind: SystemKind
    detail: str
    load: Callable[[], Ranker]


def build_systems(
    config: EvalConfig,
    *,
    teacher: Path | None = None,
    untrained: Path | None = None,
    pretrained: Path | None = None,
    finetuned: Path | None = None,
    encoder: EncoderConfig | None = None,
) -> list[System]:
    """The systems that `config` switches on, weakest expected first.

    Args:
        teacher, untrained, pretrained, finetuned: folders of this run's stages; None where the recipe has no such
            stage, which leaves the system out.
        encoder: how models without an `encoder.json` (untrained, pretrained) turn text into a vector.

    Raises:
        UserError: a given folder does not exist, or two baselines share a name.
    """
    systems: list[System] = []
    if config.bm25:
        systems.append(System("bm25", "bm25", f"BM25, k1 {BM25_K1}, b {BM25_B}, lower-cased words", BM25Ranker))
    for model in config.baselines:
        systems.append(_baseline(model, config))
    if config.teacher and teacher is not None:
        _check("teacher", teacher)
        systems.append(System("teacher", "teacher", "the teacher that mined the pairs", lambda: _teacher(teacher)))
    stages: list[tuple[SystemKind, bool, Path | None, str]] = [
        ("untrained", config.untrained, untrained, "the truncated base before any training"),
        ("pretrained", config.pretrained, pretrained, "after continued pretraining"),
        ("finetuned", config.finetuned, finetuned, "after contrastive finetuning"),
    ]
    for kind, wanted, folder, detail in stages:
        if wanted and folder is not None:
            _check(kind, folder)
            # The finetuned folder says itself how it was trained to make a vector (encoder.json).
            systems.append(_stage(kind, folder, detail, None if kind == "finetuned" else encoder))
    return systems


def _check(name: str, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"eval: system {name}",
            f"its folder {folder} does not exist",
            f"run the stage that makes it, or set eval.{name} = false",
        )


def _teacher(folder: Path) -> Ranker:
    from data_prep.embed.teacher import load_teacher

    return DenseRanker(load_teacher(folder), name="teacher")


def _stage(kind: SystemKind, folder: Path, detail: str, encoder: EncoderConfig | None) -> System:
    def load() -> Ranker:
        from train.encoder import load_encoder

        return DenseRanker(load_encoder(folder, config=encoder), name=kind)

    return System(kind, kind, detail, load)


def _baseline(model: str, config: EvalConfig) -> System:
    name = model.removeprefix(PACKAGE_PREFIX).rstrip("/").rsplit("/", 1)[-1].removeprefix("gt_").replace("_", "-")

    def load() -> Ranker:
        embedder = SentenceTransformerEmbedder(model, max_length=config.max_length, batch_size=config.batch_size)
        return DenseRanker(embedder, name=name)

    return System(name, "baseline", f"published sentence-transformers model {model}", load)
