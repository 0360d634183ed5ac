"""Who belongs to whom in a global batch: the tables from which every objective and every mask is computed.

Invariant: the tables are a function of the global batch alone, so they are equal on every rank, and a text's number is
its content id, so equal texts are recognised wherever they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Relations:
    """Tables over B queries and C passages; int64 unless said otherwise.

    Attributes:
        query_ids: [B] content numbers. passage_ids: [C].
        anchor_query, anchor_passage: [A] every (query, positive) pair that is trained on.
        anchor_weight: [A] fp32, 1 / number of anchors of that query, so that every query weighs 1.
        passage_query: [C] the query whose row brought the passage.
        passage_positive: [C] bool, whether it came as a positive of that query.
        known_ids: [B, K] texts that are no negatives of the query (its positives and itself), filled up with -1.
        passage_documents: [C] the document of the passage, -1 where unknown.
        known_documents: [B, M] documents of the query and of its positives, filled up with -1.
        scores: [C] fp32, the teacher's score of (passage_query, passage), NaN where unknown.
    """

    query_ids: torch.Tensor
    passage_ids: torch.Tensor
    anchor_query: torch.Tensor
    anchor_passage: torch.Tensor
    anchor_weight: torch.Tensor
    passage_query: torch.Tensor
    passage_positive: torch.Tensor
    known_ids: torch.Tensor
    passage_documents: torch.Tensor
    known_documents: torch.Tensor
    scores: torch.Tensor

    def to(self, device: Any) -> Relations:
        """The same tables on another device."""
        return Relations(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class Chosen:
    """The texts that one use of a pair row trains on.

    Attributes:
        query: its text. query_id: its content id.
        passages: positives first, then negatives. passage_ids: their content ids. positives: how many are positives.
        known_ids: content ids of all positives of the row and of the query.
        documents: the document id of each passage, None where unknown.
        known_documents: document ids of the query and of all positives of the row.
        scores: the teacher's score of each passage, None where unknown.
        source: the source of the row.
    """

    query: str
    query_id: str
    passages: list[str]
    passage_ids: list[str]
    positives: int
    known_ids: list[str]
    documents: list[str | None]
    known_documents: list[str]
    scores: list[float | None]
    source: str = ""


def number_of(content_id: str) -> int:
    """A content id (hex) as a non-negative int64; 60 of its bits are kept."""
    return int(content_id[:15], 16)


def content_numbers(column: Any) -> NDArray[np.int64]:
    """`number_of` for an Arrow column or array of content ids, without a Python loop."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not len(column):
        return np.empty(0, dtype=np.int64)
    # a fresh array of equally long strings: its data buffer is one matrix of characters
    characters = pc.utf8_slice_codeunits(column, 0, 15).buffers()[-1]
    digits = np.frombuffer(characters, dtype=np.uint8, count=15 * len(column)).astype(np.int64)
    nibbles = np.where(digits >= ord("a"), digits - ord("a") + 10, digits - ord("0")).reshape(-1, 15)
    shifts = np.arange(56, -4, -4, dtype=np.int64)
    found: NDArray[np.int64] = (nibbles << shifts).sum(1)
    return found


def document_number(identifier: str | None) -> int:
    """Any document id as a non-negative int64; -1 for None."""
    import hashlib

    if identifier is None:
        return -1
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "big") >> 4


def padded_table(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Numbers as [len(rows), longest row, at least 1] int64, filled up with -1."""
    import torch

    width = max((len(r) for r in rows), default=0) or 1
    table = torch.full((len(rows), width), -1, dtype=torch.long)
    for i, row in enumerate(rows):
        if row:
            table[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return table


def relations_of(batch: Sequence[Chosen]) -> Relations:
    """The tables of a global batch, on the CPU."""
    import torch

    anchor_query: list[int] = []
    anchor_passage: list[int] = []
    anchor_weight: list[float] = []
    passage_query: list[int] = []
    positive: list[bool] = []
    column = 0
    for i, row in enumerate(batch):
        for j in range(len(row.passages)):
            if j < row.positives:
                anchor_query.append(i)
                anchor_passage.append(column + j)
                anchor_weight.append(1 / row.positives)
            passage_query.append(i)
            positive.append(j < row.positives)
        column += len(row.passages)
    long = torch.long
    scores = [float("nan") if s is None else s for row in batch for s in row.scores]
    return Relations(
        query_ids=torch.tensor([number_of(r.query_id) for r in batch], dtype=long),
        passage_ids=torch.tensor([number_of(p) for r in batch for p in r.passage_ids], dtype=long),
        anchor_query=torch.tensor(anchor_query, dtype=long),
        anchor_passage=torch.tensor(anchor_passage, dtype=long),
        anchor_weight=torch.tensor(anchor_weight, dtype=torch.float32),
        passage_query=torch.tensor(passage_query, dtype=long),
        passage_positive=torch.tensor(positive, dtype=torch.bool),
        known_ids=padded_table([sorted({number_of(k) for k in r.known_ids}) for r in batch]),
        passage_documents=torch.tensor([document_number(d) for r in batch for d in r.documents], dtype=long),
        known_documents=padded_table([sorted({document_number(d) for d in r.known_documents}) for r in batch]),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
