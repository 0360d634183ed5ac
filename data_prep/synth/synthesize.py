"""Documents → question–passage pairs: chunk, ask, generate, filter, write.

Invariant: a pair's passage never contains its query, its source is `synth:STYLE`, and what is drawn for a document
depends on the seed and the document's id. Documents stream through; what grows with the corpus is 16 to 32 bytes a kept
question (to tell copies) and a hash a title.

A killed run goes on where it was: finished parts lie in `scratch`, answers of a model in `cache`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.fanout import Fanout, Serial
from data_prep.files import write_json
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.synth.config import SynthConfig
from data_prep.synth.filters import REFUSALS
from data_prep.synth.part import Seen, is_written, write_part
from data_prep.synth.statistics import write_statistics
from data_prep.synth.tally import BASIC, Examples, Tally

if TYPE_CHECKING:
    from data_prep.corpus.decontaminate import DecontaminateConfig
    from data_prep.corpus.private import PrivateConfig
    from data_prep.embed.embedder import Teacher
    from data_prep.synth.roundtrip import RoundTrip

__all__ = ["SynthConfig", "synthesize_pairs"]

PART_ROWS = 50_000
"""Documents of a part; fixed, so that the number of workers changes nothing."""
EXAMPLES = 50
"""Pairs in the report to read."""
_BLOCK = 4096


def synthesize_pairs(
    config: SynthConfig,
    *,
    documents: Path,
    out: Path,
    seed: int,
    progress: Progress,
    evaluation_sets: Sequence[Path] = (),
    teacher: Teacher | None = None,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
    cache: Path | None = None,
    decontaminate: DecontaminateConfig | None = None,
    private: PrivateConfig | None = None,
) -> dict[str, int | float]:
    """Make pairs of documents; write a shard folder of kind `pairs` to `out`, and `out/report.json`.

    Args:
        documents: a shard folder of kind `documents`.
        seed: draws documents, styles and sentences.
        evaluation_sets: folders whose questions and documents no pair may hold, not even nearly.
        teacher: judges the round trip instead of the config's.
        fanout: who computes the parts; None: this process.
        scratch: a folder that outlives a crash; None: inside `out`, removed at the end.
        cache: folder of a model's answers and of vectors; None keeps them in `scratch`.
        decontaminate, private: those of the corpus: how evaluation texts are sought (see `TextFilters`); None: the
            defaults.

    Returns:
        Counts: documents, chunks, pairs, one count a style, refused_* by filter, duplicates, documents_without_pair;
        generator_* as the generator counted (requests, tokens, cost).

    Raises:
        UserError: no pair at all (the filters are named with their numbers), no tokenizer or teacher where one is asked
            for, and what the generator raises.
    """
    shards = Shards(documents, "documents")
    work = scratch if scratch is not None else out / ".scratch"
    work.mkdir(parents=True, exist_ok=True)
    with progress.work("synthesise"):
        read = write_statistics(config, documents=documents, seed=seed, out=work / "statistics.json", progress=progress)
        gate: dict[str, Any] = {}
        if evaluation_sets:
            gate["decontaminate"] = None if decontaminate is None else decontaminate.model_dump(mode="json")
            gate["private"] = None if private is None else private.model_dump(mode="json")
        results, folders = _parts(config, shards, documents, work, seed, progress, evaluation_sets, gate, fanout, cache)
        tally = Tally(config.filters.samples)
        generator_counts: dict[str, int | float] = {}
        for result in results:
            tally.add(result)
            for name, value in result["generator_counts"].items():
                generator_counts[name] = generator_counts.get(name, 0) + value
        trip = _round_trip(config, tally, folders, teacher, seed, work, cache, progress)
        examples = Examples(EXAMPLES)
        merger = _Merger(config, tally, examples, trip, tries_foreign=_tries_foreign(config, teacher))
        written = out if config.negatives is None else work / "pairs"
        with ShardWriter(written, "pairs") as writer:
            progress.begin("write pairs", None, "pairs")
            for row in merger.rows(folders, [result["counts"]["chunks"] for result in results]):
                writer.append(row)
                progress.advance(1)
            if not tally.counts["pairs"]:
                raise _no_pair(config, read, tally)
    mined: dict[str, int | float] = {}
    if config.negatives is not None:
        mined = _mine(config, written, documents, folders, out, work, seed, progress, fanout, cache)
    tried = [style for style in config.styles if _is_tried(config, style, _tries_foreign(config, teacher))]
    _report(out, config, tally, generator_counts, examples, trip, tried, mined)
    if scratch is None:
        shutil.rmtree(work, ignore_errors=True)
    counts: dict[str, int | float] = {**tally.counts, "documents": read, **mined}
    return {**counts, **{f"generator_{name}": value for name, value in generator_counts.items()}}


def _parts(
    config: SynthConfig,
    shards: Shards,
    documents: Path,
    work: Path,
    seed: int,
    progress: Progress,
    evaluation_sets: Sequence[Path],
    gate: dict[str, Any],
    fanout: Fanout | None,
    cache: Path | None,
) -> tuple[list[dict[str, Any]], list[Path]]:
    """The parts' results and folders, in the order of the documents."""
    # A model is asked by one process: its concurrency and its spending limit hold for the run.
    step = PART_ROWS if config.generator == "offline" else max(len(shards), 1)
    starts = range(0, max(len(shards), 1), step)
    folders = [work / f"part-{number:05d}" for number in range(len(starts))]
    parts: list[dict[str, Any]] = [
        {
            "config": config.model_dump(mode="json"),
            "documents": str(documents.resolve()),
            "start": start,
            "stop": min(start + step, len(shards)),
            "statistics": str((work / "statistics.json").resolve()),
            "evaluation_sets": [str(path.resolve()) for path in evaluation_sets],
            **gate,
            "seed": seed,
            "cache": str(((cache or work) / "answers").resolve()),
            "fingerprint": shards.fingerprint,
            "out": str(folder.resolve()),
        }
        for start, folder in zip(starts, folders, strict=True)
    ]
    if config.generator == "llm" or len(parts) == 1:
        if config.generator == "llm":
            progress.begin("ask", None, "asks")
        else:
            progress.begin("ask", len(shards), "documents")
        return [write_part(**part, progress=progress) for part in parts], folders
    computed = (fanout or Serial()).map(
        "data_prep.synth.part:write_part", parts, scratch=work, label="synth", progress=progress
    )
    return computed, folders


def _round_trip(
    config: SynthConfig,
    tally: Tally,
    folders: list[Path],
    teacher: Teacher | None,
    seed: int,
    work: Path,
    cache: Path | None,
    progress: Progress,
) -> RoundTrip | None:
    foreign = _tries_foreign(config, teacher)
    made = [style for style, counter in tally.styles.items() if counter["made"] and _is_tried(config, style, foreign)]
    if config.filters.round_trip is None or not made:
        return None
    from data_prep.synth.roundtrip import RoundTrip

    return RoundTrip(
        config, [folder / "chunks" for folder in folders], teacher=teacher, seed=seed, scratch=work,
        cache=(cache or work) / "embeddings", progress=progress,
    )  # fmt: skip


def _tries_foreign(config: SynthConfig, teacher: Teacher | None) -> bool:
    return not (teacher.name if teacher is not None else config.teacher.kind).startswith("tfidf")


def _is_tried(config: SynthConfig, style: str, foreign: bool) -> bool:
    """Whether questions of a style make the round trip."""
    return is_written(config, style) and (foreign or style != "cross_lingual")


class _Merger:
    """The parts' candidates, one after another, through the filters that need the whole run."""

    def __init__(
        self, config: SynthConfig, tally: Tally, examples: Examples, trip: RoundTrip | None, *, tries_foreign: bool
    ) -> None:
        self._config, self._tally, self._examples, self._trip = config, tally, examples, trip
        self._foreign = tries_foreign
        self._seen = Seen(config)

    def rows(self, folders: Sequence[Path], chunks: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Pair rows in the order of the documents; `chunks` is how many each part has."""
        first_chunk = 0
        for folder, count in zip(folders, chunks, strict=True):
            with (folder / "candidates.jsonl").open(encoding="utf-8") as file:
                while block := [json.loads(line) for line in islice(file, _BLOCK)]:
                    for one in block:
                        one["chunks"] = [number + first_chunk for number in one["chunks"]]
                    yield from self._block(block)
            first_chunk += count

    def _block(self, block: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        lost: set[int] = set()
        if self._trip is not None:
            tried = [n for n, one in enumerate(block) if _is_tried(self._config, one["style"], self._foreign)]
            found = self._trip.found([block[n] for n in tried])
            lost = {n for n, ok in zip(tried, found, strict=True) if not ok}
        for number, one in enumerate(block):
            reason = (
                "refused_round_trip"
                if number in lost
                else self._seen.refuse(one["style"], one["query"], one["positives"])
            )
            if reason:
                self._tally.refused(reason, one["style"], one["query"], one["positives"][0])
                continue
            self._tally.kept(one["style"], one["language"])
            row = pair_row(
                one["query"], one["positives"], [], f"synth:{one['style']}", one["language"],
                query_document=one["query_document"], positive_documents=one["positive_documents"],
            )  # fmt: skip
            self._examples.offer(
                one["style"], {"query": one["query"], "positives": one["positives"], "language": one["language"]}
            )
            yield row


def _mine(
    config: SynthConfig,
    pairs: Path,
    documents: Path,
    folders: list[Path],
    out: Path,
    work: Path,
    seed: int,
    progress: Progress,
    fanout: Fanout | None,
    cache: Path | None,
) -> dict[str, int | float]:
    """Add hard negatives to the pairs and put the result in `out`, the audit beside it as `negatives.json`.

    Negatives are of the same length as positives: where documents were cut, they are chunks.
    """
    from data_prep.mine.negatives import add_negatives

    assert config.negatives is not None
    if config.chunks is not None:
        documents = work / "chunks"
        with ShardWriter(documents, "documents") as writer:
            for folder in folders:
                writer.extend(Shards(folder / "chunks", "documents", verify=False))
    counts = add_negatives(
        pairs, documents=documents, policy=config.negatives, teacher=config.teacher, out=work / "mined", seed=seed,
        progress=progress, fanout=fanout, scratch=work / "mining",
        cache=(cache or work) / "embeddings", table="synth",
    )  # fmt: skip
    made = work / "mined" / "pairs"
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(made.iterdir(), key=lambda path: path.name == "manifest.json"):  # the manifest comes last
        path.replace(out / path.name)
    (work / "mined" / "audit.json").replace(out / "negatives.json")
    return {f"negatives_{name}": value for name, value in counts.items() if name not in ("pairs", "documents")} | {
        "pairs": counts["pairs"]
    }


def _no_pair(config: SynthConfig, read: int, tally: Tally) -> UserError:
    names = [name for name in (*BASIC, *REFUSALS, "duplicates") if tally.counts[name] or name in BASIC]
    made = sum(counter["made"] for counter in tally.styles.values())
    worst = max(names, key=lambda name: tally.counts[name])
    fixes = {
        "refused_round_trip": "raise synth.filters.round_trip, give a better synth.teacher, or set none",
        "refused_language": "check the documents' language tags, or set synth.filters.language = false",
        "refused_copied": "raise synth.filters.max_copied_words and max_copied_share",
        "refused_meta": "look at the samples of the prompt's answers: the model does not do what it is asked",
        "refused_evaluation_overlap": "the documents are the evaluation's: remove them from [corpus]",
        "refused_repeated": "give other documents, or set synth.filters.repeated = false",
    }
    fix = "add styles (cloze needs only sentences), raise their shares, or loosen the limits on words"
    return UserError(
        f"synth.styles = {config.styles}",
        f"finds no pair in {read} documents ({made} questions made; "
        + ", ".join(f"{name} {tally.counts[name]}" for name in names)
        + ")",
        fixes.get(worst, fix) if tally.counts[worst] else fix,
    )


def _report(
    out: Path,
    config: SynthConfig,
    tally: Tally,
    generator_counts: dict[str, int | float],
    examples: Examples,
    trip: RoundTrip | None,
    tried: list[str],
    mined: dict[str, int | float],
) -> None:
    told = tally.as_json()
    write_json(
        out / "report.json",
        {
            "generator": config.generator,
            "generator_counts": generator_counts,
            "round_trip": None if trip is None else trip.told(tried),
            "counts": told["counts"],
            "styles": told["styles"],
            "languages": told["languages"],
            "filters": {
                name: {
                    "refused": tally.counts[name],
                    "samples": [shown for _, shown in told["samples"].get(name, [])],
                }
                for name in (*BASIC, *REFUSALS, "duplicates")
            },
            "negatives": mined or None,
            "examples": examples.picked(),
        },
    )
