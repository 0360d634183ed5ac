"""One part of the documents → candidates: pairs that passed every filter but those that need the whole run.

A part writes `candidates.jsonl` (one pair a line, in the order of the documents) and, where a round trip is to follow,
`chunks`, a shard folder of kind `documents` with every chunk. Memory holds one block of documents and the keys of the
questions kept so far.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.corpus.keys import text_key
from data_prep.corpus.private import PrivateConfig
from data_prep.errors import UserError
from data_prep.files import content_id, disk_errors, read_json
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.synth.asks import Asker, Question
from data_prep.synth.config import SynthConfig
from data_prep.synth.filters import TextFilters, question_key, tidy
from data_prep.synth.generator import LLM_STYLES, TEXT_STYLES, Ask, Generator, Made
from data_prep.synth.rules import contains, cut_words
from data_prep.synth.tally import Tally

if TYPE_CHECKING:
    from data_prep.synth.llm import LlmGenerator

BLOCK = 512
"""Documents that are asked about together."""


def write_part(
    *,
    config: dict[str, Any],
    documents: str,
    start: int,
    stop: int,
    statistics: str,
    evaluation_sets: list[str],
    seed: int,
    cache: str | None,
    fingerprint: str,
    out: str,
    decontaminate: dict[str, Any] | None = None,
    private: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the candidates of the documents [start, stop).

    Args:
        config: a `SynthConfig` as JSON values.
        documents: a shard folder of kind `documents`.
        statistics: what `statistics.py` wrote: shared titles, word counts.
        cache: folder of a model's request log.
        fingerprint: of the documents: a finished part of other documents is not taken up.
        out: the part's own folder.
        decontaminate, private: as JSON values, see `TextFilters`; None: the defaults.

    Returns:
        A `Tally` as JSON values, with `documents`, `chunks`, and the generator's counts.
    """
    settings = SynthConfig.model_validate(config)
    told = read_json(Path(statistics))
    shards = Shards(Path(documents), "documents", verify=False)
    if shards.fingerprint != fingerprint:
        raise UserError(documents, "was changed while pairs were made of it", "run the same command again")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    maker = PartMaker(
        settings, seed, told, [Path(path) for path in evaluation_sets], Path(cache) if cache else None,
        decontaminate=None if decontaminate is None else DecontaminateConfig.model_validate(decontaminate),
        private=None if private is None else PrivateConfig.model_validate(private),
    )  # fmt: skip
    chosen = selection(len(shards), settings.max_documents, seed)
    rows = (row for number, row in enumerate(shards.rows_between(start, stop), start) if chosen(number))
    path = folder / "candidates.jsonl"
    with (
        ShardWriter(folder / "chunks", "documents") if needs_chunks(settings) else nullcontext() as chunks,
        disk_errors(path),
        path.open("w", encoding="utf-8") as file,
        maker,
    ):
        while block := list(islice(rows, BLOCK)):
            for candidate in maker.block(block, chunks, progress or Progress()):
                file.write(json.dumps(candidate, ensure_ascii=False) + "\n")
            if progress is not None and settings.generator == "offline":  # a model's answers move the bar themselves
                progress.advance(len(block))
    return {**maker.tally.as_json(), "generator_counts": maker.generator_counts()}


def needs_chunks(config: SynthConfig) -> bool:
    """Whether the chunks must be kept: somebody searches them."""
    tried = config.filters.round_trip is not None and any(is_written(config, style) for style in config.styles)
    return tried or (config.negatives is not None and config.chunks is not None)


def selection(total: int, most: int | None, seed: int) -> Callable[[int], bool]:
    """Tells which rows of the documents are read."""
    import numpy as np

    if most is None or most >= total:
        return lambda number: True
    drawn = set(np.random.default_rng([seed, 3]).choice(total, most, replace=False).tolist())
    return drawn.__contains__


class PartMaker:
    """Asks about blocks of documents and filters what comes back.

    Attributes:
        tally: what was counted.
    """

    def __init__(
        self,
        config: SynthConfig,
        seed: int,
        statistics: dict[str, Any],
        evaluation_sets: list[Path],
        cache: Path | None,
        *,
        decontaminate: DecontaminateConfig | None = None,
        private: PrivateConfig | None = None,
    ) -> None:
        from data_prep.synth.offline import OfflineGenerator

        self._config = config
        self._asker = Asker(config, seed)
        self._shared_titles: dict[str, int] = statistics["titles"]
        self._generators: dict[str, Generator] = {}
        offline = OfflineGenerator(config, seed, statistics["words"])
        for style in config.styles:
            self._generators[style] = offline
        self._llm: LlmGenerator | None = None
        if config.generator == "llm":
            assert config.llm is not None  # the config sees to it
            from data_prep.synth.llm import LlmGenerator

            self._llm = LlmGenerator(config.llm, log=cache)
            self._generators.update({style: self._llm for style in config.styles if style in LLM_STYLES})
        self._filters = TextFilters(
            config.filters, evaluation_sets, by_model=config.generator == "llm", decontaminate=decontaminate,
            private=private,
        )  # fmt: skip
        self._seen = Seen(config)
        self.tally = Tally(config.filters.samples)
        self._first_chunk = 0
        self._names: dict[str, str] = {}  # id of a row of the block → the document that it is a part of

    def __enter__(self) -> PartMaker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._llm is not None:
            self._llm.close()

    def generator_counts(self) -> dict[str, int | float]:
        """What the generators counted."""
        counts: dict[str, int | float] = {}
        for generator in {id(one): one for one in self._generators.values()}.values():
            counts.update(generator.counts)
        return counts

    def block(
        self, rows: list[dict[str, Any]], out: ShardWriter | None, progress: Progress
    ) -> Iterator[dict[str, Any]]:
        """The candidates of some documents, in their order; the chunks are written to `out` where one is given."""
        self._names = {row["id"]: row["document"] or row["id"] for row in rows}
        questions = self._asker.questions(rows)
        answers = self._answers([question.ask for question in questions], progress)
        for row in rows:
            self.tally.counts["documents"] += 1
            self.tally.languages.setdefault(row["language"], {"documents": 0, "pairs": 0})["documents"] += 1
        numbers: dict[tuple[str, int], int] = {}
        for number, (chunk, language) in enumerate(self._asker.chunks, start=self._first_chunk):
            numbers[chunk.document, chunk.index] = number
            if out is not None:
                out.append(
                    {
                        "id": chunk.id,
                        "text": chunk.prefix + chunk.text,
                        "source": "chunk",
                        "language": language,
                        "document": self._names[chunk.document],
                    }
                )
        self._first_chunk += len(self._asker.chunks)
        self.tally.counts["chunks"] += len(self._asker.chunks)
        made_of: dict[tuple[str, int], int] = {}
        with_pair: set[str] = set()
        for question in questions:
            place = (question.chunks[0].document, question.chunks[0].index)
            for made in answers.get(question.ask.id, ()):
                if made_of.get(place, 0) == self._config.max_pairs_per_document:
                    break
                self.tally.made(question.ask.style)
                candidate = self._candidate(question, made)
                if candidate is None:
                    continue
                made_of[place] = made_of.get(place, 0) + 1
                with_pair.add(question.chunks[0].document)
                candidate["chunks"] = [numbers[chunk.document, chunk.index] for chunk in question.chunks]
                yield candidate
        self.tally.counts["documents_without_pair"] += sum(row["id"] not in with_pair for row in rows)

    def _answers(self, asks: list[Ask], progress: Progress) -> dict[str, list[Made]]:
        answers: dict[str, list[Made]] = {}
        waiting: dict[int, dict[str, Ask]] = {}
        by_id = {id(generator): generator for generator in self._generators.values()}
        for ask in asks:
            self.tally.asked(ask.style)
            waiting.setdefault(id(self._generators[ask.style]), {})[ask.id] = ask  # the same text twice is asked once
        for key, wanted in waiting.items():
            for ask, made in by_id[key].generate(list(wanted.values()), progress=progress):
                answers[ask.id] = made
        return answers

    def _candidate(self, question: Question, made: Made) -> dict[str, Any] | None:
        ask, written = question.ask, is_written(self._config, question.ask.style)
        text = tidy(made.question) if written else made.question
        passages = [made.passage] if made.passage is not None else [chunk.text for chunk in question.chunks]
        # Titles and headings go before a passage, but not where the question holds them.
        shown = made.passage is None or ask.style in ("question", "cloze", "keywords")
        passages = [
            (chunk.prefix if shown else "") + cut_words(passage, self._config.max_passage_words)
            for chunk, passage in zip(question.chunks, passages, strict=False)
        ]
        reason = self._refuse(question, text, passages, written)
        if reason:
            self.tally.refused(reason, ask.style, text, passages[0])
            return None
        return {
            "query": text,
            "positives": passages,
            "style": ask.style,
            "language": ask.target_language,
            "query_document": self._names[question.chunks[0].document],
            "positive_documents": [self._names[chunk.document] for chunk in question.chunks[: len(passages)]],
        }

    def _refuse(self, question: Question, text: str, passages: list[str], written: bool) -> str | None:
        """The count under which a candidate is refused, or None; one that passes is remembered."""
        config, ask = self._config, question.ask
        if not config.min_query_words <= len(text.split()) <= config.max_query_words:
            return "refused_query_length"
        if any(len(passage.split()) < config.min_passage_words for passage in passages):
            return "refused_passage_length"
        if any(contains(passage, text) for passage in passages):
            return "refused_query_in_passage"
        if ask.style == "title" and self._shared_titles.get(text_key(text), 0) > config.max_documents_per_title:
            return "refused_common_title"
        if written:
            reason = self._filters.refuse(text, passages, style=ask.style, language=ask.target_language)
            if reason:
                return reason
        elif self._filters.overlaps([text, *passages]):
            return "refused_evaluation_overlap"
        return self._seen.refuse(ask.style, text, passages)


class Seen:
    """Remembers kept pairs and questions, 16 bytes each."""

    def __init__(self, config: SynthConfig) -> None:
        self._config = config
        self._keys: set[bytes] = set()

    def refuse(self, style: str, text: str, passages: Sequence[str]) -> str | None:
        """The count of a copy, or None for what is new; new ones are copies from then on."""
        keys = [content_id(text_key(text) + "".join(text_key(passage) for passage in passages))]
        if is_written(self._config, style) and self._config.filters.repeated:
            keys.append(question_key(text))
        digests = [bytes.fromhex(key) for key in keys]
        for digest, reason in zip(digests, ("duplicates", "refused_repeated"), strict=False):
            if digest in self._keys:
                return reason
        self._keys.update(digests)
        return None


def is_written(config: SynthConfig, style: str) -> bool:
    """Whether questions of this style are somebody's writing and not the document's own words."""
    return style not in TEXT_STYLES or (config.generator == "llm" and style in LLM_STYLES)
