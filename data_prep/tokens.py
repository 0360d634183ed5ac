"""Documents → rows of a fixed number of tokens.

Invariant: every row holds exactly `row_tokens` token ids, and `document_starts` cuts it wherever a document begins or
goes on, so attention never crosses documents. A document is whole in training or whole in validation, by the hash of
its id alone, so new documents never move old ones. A validation row holds documents of one source, so that its loss
can be told apart; what is left of each source makes the last rows, which mix. The tokens that do not fill a last row
are dropped, and counted.
"""

from __future__ import annotations

import hashlib
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.progress import Progress
from data_prep.shards import ShardWriter
from data_prep.text_store import build_text_store
from data_prep.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokensConfig(Section):
    """`[tokens]`: how documents become rows for continued pretraining."""

    row_tokens: Annotated[int, Field(ge=8)] = 1024
    """Tokens in a row = the longest context that pretraining sees; longer documents go on in the next row."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the documents (0 to 1) held out to measure the loss; 0 makes no validation rows."""
    max_documents: Annotated[int, Field(ge=1)] | None = None
    """Use at most this many documents, drawn by the seed; none uses all."""
    batch_documents: Annotated[int, Field(ge=1)] = 1000
    """Documents tokenised in one call: larger is little faster and holds more memory."""


class RowPacker:
    """Lays documents end to end and cuts the line into rows.

    Args:
        source: what the rows say of their source; None where they mix.

    Attributes:
        rows, tokens, documents: written rows, tokens in them, documents added.
    """

    def __init__(self, writer: ShardWriter, row_tokens: int, source: str | None = None) -> None:
        self._writer, self._row_tokens, self._source = writer, row_tokens, source
        self._pieces: list[list[int]] = []
        self._held = 0
        self.rows = self.documents = 0

    @property
    def tokens(self) -> int:
        """Tokens in the rows written so far."""
        return self.rows * self._row_tokens

    @property
    def remainder(self) -> int:
        """Tokens that wait for a full row: dropped if nothing follows."""
        return self._held

    def add(self, documents: list[list[int]]) -> None:
        """Add tokenised documents and write the rows that they fill."""
        import numpy as np

        self.documents += len(documents)
        self._pieces.extend(documents)
        self._held += sum(map(len, documents))
        count = self._held // self._row_tokens
        if not count:
            return
        stream = np.concatenate([np.asarray(piece, dtype=np.int32) for piece in self._pieces])
        starts = np.cumsum([0, *(len(piece) for piece in self._pieces)])[:-1]
        size = self._row_tokens
        for row in range(count):
            inside = starts[(starts >= row * size) & (starts < (row + 1) * size)] - row * size
            if not len(inside) or inside[0] != 0:  # the row opens with the rest of a document
                inside = np.concatenate([[0], inside])
            self._writer.append(
                {
                    "input_ids": stream[row * size : (row + 1) * size],
                    "document_starts": inside.astype(np.int32),
                    "source": self._source,
                }
            )
        self.rows += count
        self._carry(stream, starts, count * size)

    def take_rest(self) -> list[list[int]]:
        """Hand over what waits for a full row; nothing waits afterwards."""
        rest, self._pieces, self._held = self._pieces, [], 0
        return rest

    def _carry(self, stream: NDArray[np.int32], starts: NDArray[np.int64], used: int) -> None:
        """Keep what is left after `used` tokens, as the pieces it is made of."""
        later = starts[starts > used].tolist()
        edges = [used, *later, len(stream)]
        self._pieces = [stream[a:b].tolist() for a, b in pairwise(edges) if b > a]
        self._held = len(stream) - used


class SourcePacker:
    """Rows of one source each, from documents of many; what fills no row of its own source is mixed at the end."""

    def __init__(self, writer: ShardWriter, row_tokens: int) -> None:
        self._writer, self._row_tokens = writer, row_tokens
        self._packers: dict[str, RowPacker] = {}
        self._mixed = RowPacker(writer, row_tokens)

    def add(self, documents: list[list[int]], sources: list[str]) -> None:
        """Add tokenised documents with the source of each, and write the rows that they fill."""
        for source in sorted(set(sources)):
            own = [d for d, s in zip(documents, sources, strict=True) if s == source]
            if source not in self._packers:
                self._packers[source] = RowPacker(self._writer, self._row_tokens, source)
            self._packers[source].add(own)

    def finish(self) -> None:
        """Write the rows that the rests of the sources fill together; nothing can be added afterwards."""
        for source in sorted(self._packers):
            self._mixed.add(self._packers[source].take_rest())

    @property
    def rows(self) -> int:
        """Written rows."""
        return self._mixed.rows + sum(p.rows for p in self._packers.values())

    @property
    def tokens(self) -> int:
        """Tokens in the rows written so far."""
        return self.rows * self._row_tokens

    @property
    def documents(self) -> int:
        """Documents added."""
        return sum(p.documents for p in self._packers.values())

    @property
    def remainder(self) -> int:
        """Tokens that wait for a full row."""
        return self._mixed.remainder + sum(p.remainder for p in self._packers.values())


def in_validation(document_id: str, fraction: float) -> bool:
    """Whether the document is held out: a pure function of its id, uncorrelated with other uses of the id."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def build_tokens(
    config: TokensConfig,
    *,
    documents: Path,
    tokenizer: Path,
    out: Path,
    seed: int,
    progress: Progress,
    scratch: Path | None = None,
) -> dict[str, int | float]:
    """Tokenise and pack; write shard folders of kind `tokens` to `out/train` and `out/validation`.

    Args:
        documents: a shard folder of kind `documents`.
        tokenizer: a tokenizer folder; each document is encoded with its special tokens.
        seed: orders the documents, so that sources mix.
        scratch: where the texts lie for random access meanwhile; None takes a folder in `out` and removes it.

    Returns:
        Counts: documents, characters, tokens (all encoded), train_rows, train_tokens, train_documents,
        validation_rows, validation_tokens, validation_documents, dropped_tokens, characters_per_token.

    Raises:
        UserError: fewer tokens than one row in training, or in validation where `validation_fraction` is above 0.
    """
    import numpy as np

    place = scratch or out / ".scratch"
    store = build_text_store(documents, place / "texts", progress=progress)
    encoder = load_tokenizer(tokenizer).backend_tokenizer
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True  # a text that spells "<eos>" is text, not the end of a document
    order = np.random.default_rng(seed).permutation(len(store))[: config.max_documents]
    held_out = np.fromiter((in_validation(store.id(n), config.validation_fraction) for n in range(len(store))), bool)
    characters = tokens = 0
    with (
        progress.work("tokenise"),
        ShardWriter(out / "train", "tokens", rows_per_file=_rows_per_file(config.row_tokens)) as train_writer,
        ShardWriter(out / "validation", "tokens", rows_per_file=_rows_per_file(config.row_tokens)) as other_writer,
    ):
        train, validation = RowPacker(train_writer, config.row_tokens), SourcePacker(other_writer, config.row_tokens)
        progress.begin("tokenise", len(order), "documents")
        for start in range(0, len(order), config.batch_documents):
            rows = order[start : start + config.batch_documents]
            batch = store.texts(rows)
            encoded = [e.ids for e in encoder.encode_batch_fast(batch)]
            characters += sum(map(len, batch))
            tokens += sum(map(len, encoded))
            train.add([ids for ids, row in zip(encoded, rows, strict=True) if not held_out[row]])
            apart = [n for n, row in enumerate(rows) if held_out[row]]
            validation.add([encoded[n] for n in apart], [store.source(int(row)) for row in rows[apart]])
            progress.advance(len(rows))
        validation.finish()
        _require_rows(config, train, validation)
    if scratch is None:
        shutil.rmtree(place, ignore_errors=True)
    return {
        "documents": len(order),
        "characters": characters,
        "tokens": tokens,
        "characters_per_token": round(characters / tokens, 4),
        "train_documents": train.documents,
        "train_rows": train.rows,
        "train_tokens": train.tokens,
        "validation_documents": validation.documents,
        "validation_rows": validation.rows,
        "validation_tokens": validation.tokens,
        "dropped_tokens": train.remainder + validation.remainder,
    }


def _rows_per_file(row_tokens: int) -> int:
    """About 16 million tokens (64 MB before compression) a file, whatever the row."""
    return max(1, 16_000_000 // row_tokens)


def _require_rows(config: TokensConfig, train: RowPacker, validation: SourcePacker) -> None:
    if not train.rows:
        raise UserError(
            f"tokens.row_tokens = {config.row_tokens}",
            f"the training documents hold only {train.remainder} tokens, less than one row",
            "lower tokens.row_tokens or give [corpus] more text",
        )
    if config.validation_fraction > 0 and not validation.rows:
        raise UserError(
            f"tokens.validation_fraction = {config.validation_fraction}",
            f"holds out {validation.documents} documents with {validation.remainder} tokens, "
            f"less than one row of {config.row_tokens}",
            "raise tokens.validation_fraction, lower tokens.row_tokens, or set the fraction to 0",
        )
