"""What a worker does for one part of the input: clean it, and later write what is kept of it.

Both functions are parts in the sense of `data_prep.fanout`: JSON in, JSON out, results whole or not at all, the same
whoever computes them.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import Piece
from data_prep.corpus.decontaminate import DecontaminateConfig, Gate
from data_prep.corpus.idents import IdentWriter
from data_prep.corpus.keys import text_key
from data_prep.corpus.language import LanguageTagger
from data_prep.corpus.lines import Trouble
from data_prep.corpus.private import PrivateConfig, Scrubber
from data_prep.corpus.quality import failed_rule
from data_prep.corpus.readers import Document, read_piece
from data_prep.corpus.repair import text_cleaner
from data_prep.corpus.report import Tally, shown
from data_prep.corpus.signatures import SignatureWriter
from data_prep.corpus.split import is_held_out
from data_prep.corpus.writer import DocumentWriter
from data_prep.evaluation_sets import set_files
from data_prep.files import content_id
from data_prep.shards import Shards

TEXTS, SIGNATURES, IDENTS = "texts", "signatures", "idents"
"""Folders inside the folder of a part: cleaned documents, what near-duplicate search needs, ids of the input."""
TRAINING, HELD_OUT = "training", "held_out"
_MORE = 1.5
"""How many times `max_documents_per_file` are cleaned of a file, because copies of earlier files fall out later."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when all is in it."""
    # a task that outlived its run may write the same part: each has a place of its own until it is whole
    beside = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    if folder.exists():  # of a run that was killed before it took note, or of such a task
        former = beside.with_suffix(".old")
        folder.rename(former)
        shutil.rmtree(former, ignore_errors=True)
    beside.rename(folder)


@functools.lru_cache(maxsize=2)
def _gate(sets: tuple[str, ...], stamp: tuple[int, ...], decontaminate: str, private: str) -> Gate:
    """The gate for some sets; kept, as a worker cleans many parts. `stamp` changes when the files of a set do."""
    scrub, clean = Scrubber(PrivateConfig.model_validate_json(private)), text_cleaner()
    config = DecontaminateConfig.model_validate_json(decontaminate)
    return Gate([Path(s) for s in sets], config, clean=lambda text: scrub(clean(text))[0])


def gate_for(sets: list[str], config: CorpusConfig) -> Gate:
    """The gate that keeps the texts of evaluation sets out of a corpus, also in their cleaned form."""
    stamp = tuple(f.stat().st_mtime_ns for s in sets for f in set_files(Path(s)))
    return _gate(tuple(sets), stamp, config.decontaminate.model_dump_json(), config.private.model_dump_json())


class _Cleaner:
    """Every rule that looks at one document alone, in order; counts what each does."""

    def __init__(self, config: CorpusConfig, sets: list[str], tally: Tally) -> None:
        self._config, self._tally = config, tally
        self._clean: Callable[[str], str] = text_cleaner()
        self._scrub, self._tagger = Scrubber(config.private), LanguageTagger(config.language)
        self._gate = gate_for(sets, config) if sets else None

    def __call__(self, document: Document) -> dict[str, Any] | None:
        """The row of a document, None where a rule removes it."""
        tally = self._tally
        repaired = self._clean(document.text)
        text, private = self._scrub(repaired)
        language = self._tagger.label(document.label, text)
        source = document.source

        tally.count("read", source, language)
        if repaired != document.text.strip():
            tally.count("repaired")
            if tally.wants("repaired"):
                tally.sample("repaired", {"before": shown(document.text), "after": shown(repaired)})
        if private:
            tally.count("private_documents")
        for one in private:
            tally.count(f"private_{one.kind}")
            tally.sample(f"private_{one.kind}", one.shown)
        rule, sample = self._fault(text, source, language)
        if rule:
            tally.count(rule, source, language)
            tally.sample(rule, sample)
            return None
        ident = content_id(text)
        return {"id": ident, "text": text, "source": source, "language": language, "document": document.document}

    def _fault(self, text: str, source: str, language: str) -> tuple[str, Any]:
        """The rule that removes a text, and its sample; an empty rule where none does."""
        config = self._config
        if len(text) < config.min_chars:
            return "too_short", shown(text)
        if (rule := failed_rule(text, config.quality)) is not None:
            return rule, shown(text)
        if config.language.keep and language not in config.language.keep:
            return "other_language", f"{language}: {shown(text)}"
        if self._gate is not None and (overlap := self._gate.find(text)) is not None:
            self._tally.count(f"overlap_{overlap.kind}")
            return "evaluation_overlap", {"text": shown(text), "source": source, "repeats": str(overlap)}
        return "", None


def clean_part(*, pieces: list[Piece], config: dict[str, Any], sets: list[str], folder: str) -> dict[str, Any]:
    """Read and clean one part; write its documents, their signatures and their ids below `folder`.

    Returns:
        `rows`: documents of each piece; `tally`: counts and samples; `idents`: whether the input gave ids.

    Raises:
        UserError: a file or line that is refused.
    """
    settings = CorpusConfig.model_validate(config)
    tally, rows = Tally(), []
    with whole_folder(Path(folder)) as place:
        cleaner = _Cleaner(settings, sets, tally)
        trouble = Trouble(settings)
        with (
            DocumentWriter(place / TEXTS) as writer,
            SignatureWriter(place / SIGNATURES, settings.near) as signatures,
            IdentWriter(place / IDENTS) as idents,
        ):
            for piece in pieces:
                before = writer.rows
                for row in _rows(piece, settings, cleaner, trouble, idents):
                    writer.append(row)
                    signatures.add(row["text"])
                rows.append(writer.rows - before)
        for name, count in trouble.counts.items():
            tally.count(name, amount=count)
        for name, samples in trouble.samples.items():
            for sample in samples:
                tally.sample(name, sample)
    return {"rows": rows, "tally": tally.to_json(), "idents": idents.rows > 0}


def _rows(
    piece: Piece, config: CorpusConfig, cleaner: _Cleaner, trouble: Trouble, idents: IdentWriter
) -> Iterator[dict[str, Any]]:
    """The cleaned rows of a piece; under a limit only as many as it can need, each text once."""
    limit = config.max_documents_per_file
    seen: set[str] = set()
    for document in read_piece(piece, config, trouble):
        if document.ident is not None:
            idents.add(piece["path"], document.ident)
        row = cleaner(document)
        if row is None:
            continue
        yield row
        if limit is not None:
            seen.add(text_key(row["text"]))
            if len(seen) >= _MORE * limit:
                return


def keep_part(
    *, folder: str, verdicts: str, out: str, fraction: float, seed: int, capped: bool, number: int
) -> dict[str, Any]:
    """Write the documents of a cleaned part that are kept, those for training and those held out in folders of `out`.

    Args:
        folder: the part's own folder. verdicts: names the verdicts that lie there (another name, another result).
        fraction: share of documents held out. capped: whether `within.npy` says which rows the limit leaves.
        number: the part's number, for samples.

    Returns:
        `tally`: counts, and for the first copies where they and what they repeat stand, as [part, row, part, row].
    """
    import numpy as np

    tally = Tally()
    signatures = Path(folder) / SIGNATURES
    verdict = np.load(signatures / "verdict.npy", allow_pickle=False)
    of = np.load(signatures / "of.npy", allow_pickle=False, mmap_mode="r")
    within = np.load(signatures / "within.npy", allow_pickle=False) if capped else None
    with (
        whole_folder(Path(out)) as place,
        DocumentWriter(place / TRAINING) as training,
        DocumentWriter(place / HELD_OUT) as held,
    ):
        for n, row in enumerate(Shards(Path(folder) / TEXTS, "documents", verify=False)):
            group = row["source"], row["language"]
            if verdict[n] and (within is None or not within[n]):
                rule = "duplicates" if verdict[n] == 1 else "near_duplicates"
                tally.count(rule, *group)
                if tally.wants(rule):
                    tally.sample(rule, [number, n, *map(int, of[n])])
            elif within is not None and not within[n]:
                tally.count("over_limit", *group)
            elif fraction and is_held_out(row["document"] or row["id"], fraction, seed):
                held.append(row)
                tally.count("held_out", *group)
                tally.count("held_out_characters", amount=len(row["text"]))
            else:
                training.append(row)
                tally.count("kept", *group)
                tally.count("characters", *group, amount=len(row["text"]))
    return {"tally": tally.to_json()}
