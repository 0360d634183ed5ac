"""What must be known of all documents before the first is asked about: shared titles, and how rare words are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data_prep.corpus.keys import text_key
from data_prep.files import write_json
from data_prep.progress import Progress
from data_prep.shards import Shards
from data_prep.synth.config import SynthConfig
from data_prep.synth.part import selection
from data_prep.synth.rules import words


def write_statistics(config: SynthConfig, *, documents: Path, seed: int, out: Path, progress: Progress) -> int:
    """Count over the documents that are read, and write the counts that matter to `out` (JSON).

    Memory grows with the number of different first lines (16 bytes and a count each) and, for keywords, words.

    Returns:
        The number of documents that are read.
    """
    shards = Shards(documents, "documents")
    chosen = selection(len(shards), config.max_documents, seed)
    titles: Counter[bytes] = Counter()
    frequency: Counter[str] = Counter()
    read = 0
    if "title" in config.styles or "keywords" in config.styles:
        progress.begin("count titles and words", len(shards), "documents")
        for number, row in enumerate(shards):
            progress.advance(1)
            if not chosen(number):
                continue
            first, newline, _ = row["text"].partition("\n")
            if newline:
                titles[bytes.fromhex(text_key(first))] += 1
            if "keywords" in config.styles:
                frequency.update(set(words(row["text"])))
    read = len(shards) if config.max_documents is None else min(len(shards), config.max_documents)
    shared = {key.hex(): count for key, count in titles.items() if count > config.max_documents_per_title}
    known = {word: count for word, count in frequency.items() if count > 1}
    write_json(out, {"titles": shared, "words": known})
    return read
