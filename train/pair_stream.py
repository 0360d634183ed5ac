"""From pair shards to one rank's part of every global batch.

Invariant: which rows a step trains on, which of their texts, and the tables about them are functions of the data, the
seed and the draw of the step; the number of ranks decides only who encodes what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.blend import Portion, blend_facts, blend_lines, is_split, plan_blend
from data_prep.errors import UserError
from data_prep.shards import Shards
from train.arrange import Arrangement
from train.cursor import GlobalOrder, Source
from train.dealing import deal
from train.draws import Draw
from train.encoder import EncoderConfig, tokenise
from train.relations import Chosen, Relations, content_numbers, relations_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]


@dataclass(frozen=True)
class Hand:
    """One rank's part of a global batch of B queries and C passages.

    Attributes:
        relations: tables of the whole batch, on the CPU.
        places: for every rank, the places of its sequences in the canonical order (queries, then passages).
        ids, skip: this rank's token sequences, and their leading tokens that pooling leaves out.
        queries: B. truncated: sequences of the batch that were cut to the longest allowed length.
        sources: the names of the sources in the batch.
        draw: what was asked for. samples: the (source, row) of every row that was read for it, in its order.
    """

    relations: Relations
    places: list[list[int]]
    ids: list[list[int]]
    skip: list[int]
    queries: int
    truncated: int
    sources: list[str]
    draw: Draw
    samples: list[tuple[int, int]]


class Rows:
    """The rows of a shard folder that are of one source, read as if they were all.

    Args:
        shards: the folder. index: the numbers of the rows in it, ascending.
    """

    def __init__(self, shards: Shards, index: NDArray[np.int64]) -> None:
        self.shards, self.index = shards, index
        self.rows, self.fingerprint = len(index), shards.fingerprint

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: Sequence[int]) -> list[Row]:
        """The given rows of the source, in the given order."""
        return self.shards.take(self.index[list(rows)].tolist()) if rows else []


def rows_by_source(shards: Shards) -> dict[str, Rows]:
    """The rows of each value of the column `source`."""
    import numpy as np

    if not shards.rows:
        return {}
    column = shards.table().column("source").combine_chunks().dictionary_encode(null_encoding="encode")
    names = [name or "" for name in column.dictionary.to_pylist()]
    codes = column.indices.to_numpy()
    order: NDArray[np.int64] = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    found = {n: order[end - count : end] for n, end, count in zip(names, ends, np.diff(ends, prepend=0), strict=True)}
    return {name: Rows(shards, index) for name, index in found.items()}


def load_blend(
    blend: Mapping[str, float],
    folders: Mapping[str, Path],
    *,
    cap: int | None = None,
    temperature: float | None = None,
) -> tuple[list[Shards | Rows], list[Portion]]:
    """The shards of a blend, and what each gives to an epoch; see data_prep/blend.py.

    Raises `UserError` where nothing is left, or an entry names no source.
    """
    opened = {stage: Shards(folders[stage], "pairs") for stage in sorted(folders) if _wanted(stage, blend)}
    parts = {
        stage: rows_by_source(shards)
        for stage, shards in opened.items()
        if is_split(stage, blend, cap=cap, temperature=temperature)
    }
    found = {
        stage: {source: len(rows) for source, rows in parts[stage].items()} if stage in parts else shards.rows
        for stage, shards in opened.items()
    }
    portions = plan_blend(blend, found, cap=cap, temperature=temperature)
    return [opened[p.stage] if p.source is None else parts[p.stage][p.source] for p in portions], portions


def open_source(name: str, folder: Path) -> Shards | Rows:
    """The rows that a source of the order names: `pairs`, or `pairs:legal_ms` for a source inside them.

    Args:
        folder: the pair shards of its stage. A source that they do not hold has no rows.
    """
    import numpy as np

    shards = Shards(folder, "pairs")
    _, inside, source = name.partition(":")
    if not inside:
        return shards
    return rows_by_source(shards).get(source) or Rows(shards, np.empty(0, np.int64))


def blend_table(
    blend: Mapping[str, float],
    folders: Mapping[str, Path],
    *,
    cap: int | None = None,
    temperature: float | None = None,
) -> list[str]:
    """What each source would give to an epoch, as lines; reads no text. Raises `UserError` as `load_blend` does."""
    found: dict[str, int | Mapping[str, int]] = {}
    for stage in sorted(folders):
        if _wanted(stage, blend):
            shards = Shards(folders[stage], "pairs", verify=False)
            split = is_split(stage, blend, cap=cap, temperature=temperature)
            found[stage] = Counter(name or "" for name in shards.column("source")) if split else shards.rows
    return blend_lines(blend_facts(plan_blend(blend, found, cap=cap, temperature=temperature)))


def _wanted(stage: str, blend: Mapping[str, float]) -> bool:
    return any(key == stage or key.startswith(f"{stage}:") for key in blend)


def load_sources(
    blend: Mapping[str, float],
    folders: Mapping[str, Path],
    *,
    cap: int | None = None,
    temperature: float | None = None,
) -> tuple[list[Shards | Rows], list[Source]]:
    """The shards of a blend and their shares. Raises `UserError` where nothing is left."""
    shards, portions = load_blend(blend, folders, cap=cap, temperature=temperature)
    return shards, [source_of(portion) for portion in portions]


def source_of(portion: Portion) -> Source:
    """A part of a blend as a source of the global order."""
    return Source(portion.name, portion.rows, portion.share)


def choose(row: Row, *, position: int, positives: int, hard_negatives: int, progress: float | None = None) -> Chosen:
    """The texts that this use of a row trains on: up to `positives` positives and `hard_negatives` negatives.

    The choice walks through the row's lists with the position in the global order, so it is the same on any number of
    ranks and after any restart. With `progress` (0 to 1, how far training is at this position) negatives go from easy
    to hard instead: by their scores, where the row has them, else as they are stored. Raises `UserError` for a row
    without a positive.
    """
    if not row["positives"]:
        raise UserError(
            f"query {row['query'][:60]!r}", "has no positive passage to train on", "remove the row or give it one"
        )
    picked: list[tuple[str, int]] = []
    for side, wanted in (("positive", positives), ("negative", hard_negatives)):
        there = len(row[f"{side}s"] or ())
        if side == "negative" and progress is not None:
            picked += [(side, j) for j in _as_hard_as(row, min(wanted, there), progress)]
        else:
            picked += [(side, (position + j) % there) for j in range(min(wanted, there))]

    def each(field: str) -> list[Any]:
        return [_at(row[f"{side}_{field}"], j) for side, j in picked]

    documents = [row["query_document"], *(row["positive_documents"] or ())]
    return Chosen(
        query=row["query"],
        query_id=row["query_id"],
        passages=[row[f"{side}s"][j] for side, j in picked],
        passage_ids=each("ids"),
        positives=sum(side == "positive" for side, _ in picked),
        known_ids=[*row["positive_ids"], row["query_id"]],
        documents=each("documents"),
        known_documents=[d for d in documents if d is not None],
        scores=each("scores"),
        source=row["source"],
    )


def _as_hard_as(row: Row, wanted: int, progress: float) -> list[int]:
    """Places of `wanted` negatives: the easiest at 0, the hardest at 1."""
    scores, there = row["negative_scores"], len(row["negatives"] or ())
    ranked = sorted(range(there), key=lambda j: scores[j]) if scores is not None else list(range(there))
    first = min(int(progress * (there - wanted + 1)), there - wanted)
    return ranked[first : first + wanted]


def _at(values: Sequence[Any] | None, index: int) -> Any:
    return None if values is None else values[index]


class _Keys:
    """Content numbers of the query and the positives of every row of a folder."""

    def __init__(self, shards: Shards) -> None:
        import numpy as np

        table = shards.table()
        self.queries: NDArray[np.int64] = content_numbers(table.column("query_id"))
        lists = table.column("positive_ids").combine_chunks()
        self.positives: NDArray[np.int64] = content_numbers(lists.flatten())
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def of(self, row: int, position: int, positives: int) -> tuple[int, ...]:
        first, end = int(self.starts[row]), int(self.starts[row + 1])
        there = end - first
        chosen = (int(self.positives[first + (position + j) % there]) for j in range(min(positives, there)))
        return (int(self.queries[row]), *chosen)


def _keys_of(shards: Sequence[Shards | Rows]) -> list[Callable[[int, int, int], tuple[int, ...]]]:
    """For each source what gives the keys of (row, position, positives); sources of one folder share its numbers."""
    made: dict[int, _Keys] = {}

    def of(part: Shards | Rows) -> Callable[[int, int, int], tuple[int, ...]]:
        whole = part.shards if isinstance(part, Rows) else part
        if id(whole) not in made:
            made[id(whole)] = _Keys(whole)
        keys = made[id(whole)]
        if not isinstance(part, Rows):
            return keys.of
        index = part.index
        return lambda row, position, positives: keys.of(int(index[row]), position, positives)

    return [of(part) for part in shards]


class PairStream:
    """Makes this rank's hand of every step; `stream(draw)` is what a prefetch thread calls.

    Args:
        shards, sources: from `load_sources`.
        tokenizer: of the model. rank, ranks: who asks.
        order_batch: queries of a global batch at the first start of the run; the order keeps it when the batch changes.
        positives, hard_negatives: texts of a row that are used at once.
        easy_to_hard: negatives get harder until position `end`, instead of taking turns.
        homogeneous: whether a batch holds pairs of one source. avoid_duplicates: see train/arrange.py.

    Attributes:
        order, arrangement: what `Draws` needs to know of the data.
        end: the position at which training ends; to be set before the first draw where negatives get harder.
    """

    def __init__(
        self,
        shards: Sequence[Shards | Rows],
        sources: Sequence[Source],
        *,
        tokenizer: Any,
        encoder: EncoderConfig,
        seed: int,
        order_batch: int,
        positives: int,
        hard_negatives: int,
        easy_to_hard: bool = False,
        homogeneous: bool,
        avoid_duplicates: bool,
        rank: int,
        ranks: int,
    ) -> None:
        self._shards, self._tokenizer, self._encoder = shards, tokenizer, encoder
        self._positives, self._hard_negatives = positives, hard_negatives
        self._rank, self._ranks = rank, ranks
        self._easy_to_hard, self.end = easy_to_hard, 0
        fingerprint = "/".join(s.fingerprint for s in shards)
        block = order_batch if homogeneous else None
        self.order = GlobalOrder(sources, fingerprint=fingerprint, seed=seed, block=block)
        tables = _keys_of(shards) if avoid_duplicates else []

        def keys(position: int) -> tuple[int, ...]:
            source, row = self.order[position]
            return tables[source](row, position, positives)

        def group(position: int) -> Hashable:
            source, _ = self.order[position]
            return (position // self.order.epoch_rows, source if homogeneous else None)

        self.arrangement = Arrangement(order_batch, keys=keys if avoid_duplicates else None, group=group)

    def rows(self, draw: Draw) -> list[tuple[tuple[int, int], Chosen]]:
        """The rows of a draw, in its order: (source, row) as it was read, and the texts chosen from it."""
        found: dict[tuple[int, int], Row] = {}
        for number, shards in enumerate(self._shards):
            wanted = [row for source, row in draw.samples if source == number]
            found |= {(number, row): content for row, content in zip(wanted, shards.take(wanted), strict=True)}
        if self._easy_to_hard and not self.end:
            raise ValueError("negatives get harder until `end`, which was not set")

        def chosen(position: int, row: Row) -> Chosen:
            progress = min(position / self.end, 1.0) if self._easy_to_hard else None
            wanted = self._hard_negatives
            return choose(row, position=position, positives=self._positives, hard_negatives=wanted, progress=progress)

        return [(place, chosen(p, found[place])) for p, place in zip(draw.positions, draw.samples, strict=True)]

    def __call__(self, draw: Draw) -> Hand:
        """This rank's hand of the global batch of a draw."""
        rows = self.rows(draw)
        return self.hand([chosen for _, chosen in rows], draw=draw, samples=[place for place, _ in rows])

    def hand(self, batch: Sequence[Chosen], *, draw: Draw, samples: list[tuple[int, int]]) -> Hand:
        """Tokenise a global batch and deal it.

        Every rank tokenises the whole batch, in the background: lengths must be known to deal evenly. Estimates from
        bytes and spaces left the busiest of 32 ranks 5 % above the mean on real text, token counts under 1 %, and one
        core tokenises about a million tokens a second.
        """
        queries = tokenise(self._tokenizer, [row.query for row in batch], self._encoder, "query")
        texts = [p for row in batch for p in row.passages]
        passages = tokenise(self._tokenizer, texts, self._encoder, "passage")
        ids, skip = queries.ids + passages.ids, queries.skip + passages.skip
        places = deal([len(i) for i in ids], self._ranks)
        return Hand(
            relations=relations_of(batch),
            places=places,
            ids=[ids[p] for p in places[self._rank]],
            skip=[skip[p] for p in places[self._rank]],
            queries=len(batch),
            truncated=queries.truncated + passages.truncated,
            sources=sorted({row.source for row in batch}),
            draw=draw,
            samples=samples,
        )
