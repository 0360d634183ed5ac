"""Rows as passes: every token of a rank's rows once, with the right target, in as many passes on every rank."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from data_prep.shards import ShardWriter
from train.cursor import GlobalOrder, Source
from train.draws import Draws
from train.token_rows import IGNORED, TokenBatches, TokenRows

ROWS, LENGTH = 23, 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    rng = random.Random(5)
    with ShardWriter(folder, "tokens", rows_per_file=7) as writer:
        for row in range(ROWS):
            starts = sorted({0, *(rng.randrange(1, LENGTH) for _ in range(rng.randint(0, 5)))})
            ids = [row * LENGTH + n for n in range(LENGTH)]  # every token tells where it stood
            source = "rare" if row == 20 else ["news", None][row % 2]
            writer.append({"input_ids": ids, "document_starts": starts, "source": source})
    return folder


def _documents(folder: Path) -> dict[int, list[list[int]]]:
    from data_prep.shards import Shards

    found = {}
    for number, row in enumerate(Shards(folder, "tokens")):
        edges = [*row["document_starts"], LENGTH]
        found[number] = [row["input_ids"][a:b] for a, b in pairwise(edges)]
    return found


def test_a_stream_holds_the_documents_and_predicts_inside_them(folder: Path) -> None:
    rows, documents = TokenRows(folder), _documents(folder)
    chosen = [3, 22, 0, 9]
    stream, targets = rows.packed(chosen)
    edges = stream.boundaries.tolist()
    ids = stream.input_ids[0].tolist()
    got = [ids[a:b] for a, b in pairwise(edges)]
    assert sorted(got) == sorted(d for r in chosen for d in documents[r])
    assert [len(d) for d in got] == sorted((len(d) for d in got), reverse=True)
    wanted = [[*d[1:], IGNORED] for d in got]
    assert targets.tolist() == [t for d in wanted for t in d]
    assert rows.predicted(chosen) == sum(t != IGNORED for t in targets.tolist())
    assert sorted(rows.lengths(chosen)) == sorted(map(len, got))


@pytest.mark.parametrize(("ranks", "batch", "micro"), [(1, 5, 1), (2, 5, 40), (3, 7, 17), (4, 4, 1000), (3, 8, 34)])
def test_every_row_goes_to_one_rank_and_all_ranks_make_as_many_passes(
    folder: Path, ranks: int, batch: int, micro: int
) -> None:
    rows, documents = TokenRows(folder), _documents(folder)
    order = GlobalOrder([Source("tokens", len(rows))], fingerprint="x", seed=1)
    hands = [TokenBatches(rows, micro_tokens=micro, rank=rank, ranks=ranks) for rank in range(ranks)]
    draws = Draws(order, batch=batch, end=3 * batch + 1)  # the last step has a single row
    for step in range(1, 5):
        draw = draws(step)
        found = [hand(draw) for hand in hands]
        assert len({len(f.passes) for f in found}) == 1
        assert len({(f.predicted, f.work) for f in found}) == 1
        seen = []
        for stream, targets in (p for f in found for p in f.passes):
            assert stream.input_ids.shape[1] <= max(micro, LENGTH)
            if (targets != IGNORED).any() or stream.input_ids.shape[1] > 2:
                seen += stream.input_ids[0].tolist()
        expected = [order[p][1] for p in range(draw.first, draw.end)]
        assert all(f.samples == [(0, row) for row in expected] and f.draw is draw for f in found)
        assert sorted(seen) == sorted(t for row in expected for d in documents[row] for t in d)
        assert found[0].work.tokens == len(draw) * LENGTH
        assert found[0].work.sequences == sum(len(documents[row]) for row in expected)


def test_an_idle_pass_predicts_nothing(folder: Path) -> None:
    stream, targets = TokenRows(folder).idle()
    assert stream.input_ids.shape == (1, 2)
    assert targets.tolist() == [IGNORED, IGNORED]


def test_a_sample_is_spread_and_holds_every_source(folder: Path) -> None:
    rows = TokenRows(folder)
    for limit in (3, 5, 11, ROWS, 100):
        chosen = rows.sample(limit)
        assert chosen == sorted(set(chosen)) and len(chosen) == min(limit, ROWS)
        assert {rows.sources[r] for r in chosen} == {"news", "rare", None}
    assert max(b - a for a, b in pairwise(rows.sample(11))) <= 4
