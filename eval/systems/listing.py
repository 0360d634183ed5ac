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
from eval.systems.checkpoints import Materialise, checkpoint_name, checkpoint_ranker, checkpoint_steps
from eval.systems.config import EndpointSystemConfig
from eval.systems.dense import PACKAGE_PREFIX, DenseRanker, SentenceTransformerEmbedder
from eval.systems.endpoint import endpoint_ranker
from eval.systems.ranker import Ranker
from eval.systems.tfidf import TfidfRanker, TfidfTerms

if TYPE_CHECKING:
    from eval.retrieval import EvalConfig
    from train.encoder import EncoderConfig

SystemKind = Literal["bm25", "baseline", "teacher", "untrained", "pretrained", "checkpoint", "finetuned"]


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
    history: Path | None = None,
    materialise: Materialise | None = None,
    scratch: Path | None = None,
    cache: Path | None = None,
) -> list[System]:
    """The systems that `config` switches on, weakest expected first.

    Args:
        teacher, untrained, pretrained, finetuned: folders of this run's stages; None where the recipe has no such
            stage, which leaves the system out.
        encoder: how models without an `encoder.json` (untrained, pretrained) turn text into a vector.
        history: of the finetuning, for `eval.checkpoints`.
        materialise: writes a checkpoint as a model folder (see `exporter`); needed for `eval.checkpoints`.
        scratch: where such a folder lies while it is loaded; None: the system's own place.
        cache: where the answers of endpoints are kept; None keeps none.

    Raises:
        UserError: a given folder does not exist, or checkpoints are asked for and there is none.
    """
    systems: list[System] = []
    if config.bm25:
        systems.append(System("bm25", "bm25", f"BM25, k1 {BM25_K1}, b {BM25_B}, lower-cased words", BM25Ranker))
    if config.tfidf:
        systems.append(_tfidf(config.tfidf_terms))
    for model in config.baselines:
        systems.append(_baseline(model, config))
    for endpoint in config.endpoints:
        systems.append(_endpoint(endpoint, cache))
    if config.teacher and teacher is not None:
        _check("teacher", teacher)
        systems.append(System("teacher", "teacher", "the teacher that mined the pairs", lambda: _teacher(teacher)))
    stages: list[tuple[SystemKind, bool, Path | None, str]] = [
        ("untrained", config.untrained, untrained, "the truncated base before any training"),
        ("pretrained", config.pretrained, pretrained, "after continued pretraining"),
        ("finetuned", config.finetuned, finetuned, "after contrastive finetuning"),
    ]
    for kind, wanted, folder, detail in stages:
        if kind == "finetuned" and config.checkpoints:
            if history is None or materialise is None:
                raise ValueError("eval.checkpoints needs a history and somebody who writes its model folders")
            systems += [_checkpoint(history, step, materialise, scratch) for step in checkpoint_steps(history)]
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


def _tfidf(terms: TfidfTerms) -> System:
    said = {"word": "words", "char": "character 3- to 5-grams", "both": "words and character 3- to 5-grams alike"}
    return System("tfidf", "baseline", f"TF-IDF, cosine, {said[terms]}", lambda: TfidfRanker(terms))


def _endpoint(config: EndpointSystemConfig, cache: Path | None) -> System:
    detail = f"embedding model {config.model} behind an OpenAI-compatible endpoint"
    return System(config.title, "baseline", detail, lambda: endpoint_ranker(config, cache=cache))


def _checkpoint(history: Path, step: int, materialise: Materialise, scratch: Path | None) -> System:
    def load() -> Ranker:
        return checkpoint_ranker(history, step, materialise, scratch=scratch)

    return System(checkpoint_name(step), "checkpoint", f"checkpoint of the finetuning after step {step}", load)


def _baseline(model: str, config: EvalConfig) -> System:
    name = model.removeprefix(PACKAGE_PREFIX).rstrip("/").rsplit("/", 1)[-1].removeprefix("gt_").replace("_", "-")

    def load() -> Ranker:
        embedder = SentenceTransformerEmbedder(model, max_length=config.max_length, batch_size=config.batch_size)
        return DenseRanker(embedder, name=name)

    return System(name, "baseline", f"published sentence-transformers model {model}", load)
