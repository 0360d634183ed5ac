"""Batches are functions of data, seed and step; ranks divide them, and never choose them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.pairs.row import pair_row
from data_prep.shards import ShardWriter
from train.draws import Draw, Draws
from train.encoder import EncoderConfig
from train.loader import Prefetch
from train.pair_stream import PairStream, choose, load_sources
from train.relations import Chosen, content_numbers, document_number, number_of, relations_of

ENCODER = EncoderConfig(max_tokens=24, query_prompt="tanya: ")
ROWS = {"pairs": 37, "synth": 23}


def row(**changed: Any) -> dict[str, Any]:
    made = pair_row(
        "soalan", ["jawab satu", "jawab dua", "jawab tiga"], ["lain", "salah"], "test", "ms",
        positive_scores=[0.9, 0.8, 0.7], negative_scores=[0.2, 0.1], query_document="d0",
        positive_documents=["d1", "d2", "d3"], negative_documents=["n1", "n2"],
    )  # fmt: skip
    return made | changed


def test_choosing_walks_through_positives_and_negatives() -> None:
    first = choose(row(), position=0, positives=1, hard_negatives=1)
    assert (first.passages, first.positives) == (["jawab satu", "lain"], 1)
    assert first.scores == [0.9, 0.2]
    assert first.documents == ["d1", "n1"]
    second = choose(row(), position=1, positives=2, hard_negatives=5)
    assert (second.passages, second.positives) == (["jawab dua", "jawab tiga", "salah", "lain"], 2)
    assert second.passage_ids == [content_id(text) for text in second.passages]
    for chosen in (first, second):
        assert set(chosen.known_ids) == {content_id(t) for t in ("soalan", "jawab satu", "jawab dua", "jawab tiga")}
        assert set(chosen.known_documents) == {"d0", "d1", "d2", "d3"}
    assert choose(row(), position=3, positives=1, hard_negatives=1) == choose(
        row(), position=9, positives=1, hard_negatives=1
    )
    used = Counter(t for p in range(6) for t in choose(row(), position=p, positives=1, hard_negatives=1).passages)
    assert used == {"jawab satu": 2, "jawab dua": 2, "jawab tiga": 2, "lain": 3, "salah": 3}


def test_what_is_unknown_stays_unknown() -> None:
    bare = choose(pair_row("q", ["p"], [], "test", "ms"), position=5, positives=3, hard_negatives=2)
    assert (bare.passages, bare.positives) == (["p"], 1)
    assert (bare.documents, bare.scores, bare.known_documents) == ([None], [None], [])


def test_a_query_without_a_positive_is_a_mistake_with_a_fix() -> None:
    with pytest.raises(UserError, match="no positive"):
        choose(row(positives=[], positive_ids=[]), position=0, positives=1, hard_negatives=1)


def test_relations_are_what_the_rows_say() -> None:
    batch = [
        choose(row(), position=1, positives=2, hard_negatives=1),
        choose(pair_row("kedua", ["jawab satu"], [], "test", "ms"), position=0, positives=2, hard_negatives=1),
    ]
    found = relations_of(batch)
    texts = ["jawab dua", "jawab tiga", "salah", "jawab satu"]
    assert found.query_ids.tolist() == [int(content_id(t)[:15], 16) for t in ("soalan", "kedua")]
    assert found.passage_ids.tolist() == [int(content_id(t)[:15], 16) for t in texts]
    assert list(zip(found.anchor_query.tolist(), found.anchor_passage.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 3),
    ]
    assert found.anchor_weight.tolist() == [0.5, 0.5, 1.0]
    assert found.passage_query.tolist() == [0, 0, 0, 1]
    assert found.passage_positive.tolist() == [True, True, False, True]
    assert [sum(k >= 0 for k in known) for known in found.known_ids.tolist()] == [4, 2]
    assert found.passage_documents.tolist() == [*map(document_number, ["d2", "d3", "n2"]), -1]
    assert [sum(k >= 0 for k in known) for known in found.known_documents.tolist()] == [4, 0]
    assert found.scores[:3].tolist() == pytest.approx([0.8, 0.7, 0.1])
    assert bool(found.scores[3].isnan())


def test_content_numbers_of_a_column_are_those_of_its_texts() -> None:
    import pyarrow as pa

    ids = [content_id(str(i)) for i in range(50)]
    column = pa.chunked_array([ids[:20], ids[20:]])
    assert content_numbers(column).tolist() == [number_of(i) for i in ids]
    assert content_numbers(column.slice(15, 10)).tolist() == [number_of(i) for i in ids[15:25]]
    assert content_numbers(pa.array([], pa.string())).tolist() == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sources; a tenth of the positives is the same text."""
    from tiny import sentence

    rng = random.Random(2)
    found = {}
    for name, count in ROWS.items():
        found[name] = tmp_path_factory.mktemp(name)
        with ShardWriter(found[name], "pairs", rows_per_file=10) as writer:
            for i in range(count):
                positives = ["hujan lebat"] if i % 10 == 0 else [sentence(rng) for _ in range(1 + i % 3)]
                negatives = [sentence(rng, 1, 40) for _ in range(i % 4)]
                writer.append(pair_row(f"{name} {i} {sentence(rng, 1, 4)}", positives, negatives, name, "ms"))
    return found


@pytest.fixture(scope="module")
def tokenizer(world_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(world_folder / "tokenizer")


def stream(folders: dict[str, Path], tokenizer: Any, *, rank: int = 0, ranks: int = 1, **changed: Any) -> PairStream:
    shards, sources = load_sources({"pairs": 1.0, "synth": 1.0}, folders)
    settings: dict[str, Any] = {
        "encoder": ENCODER, "seed": 4, "order_batch": 7, "positives": 2, "hard_negatives": 2, "homogeneous": False,
        "avoid_duplicates": True,
    }  # fmt: skip
    return PairStream(shards, sources, tokenizer=tokenizer, rank=rank, ranks=ranks, **settings | changed)


def drawn(made: PairStream, number: int) -> Draw:
    """The draw of batch `number` (from 0)."""
    batch = made.arrangement.order_batch
    return Draws(made.order, batch=batch, end=100 * batch, arrangement=made.arrangement)(number + 1)


def texts_of(made: PairStream, number: int) -> list[Chosen]:
    return [chosen for _, chosen in made.rows(drawn(made, number))]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_divide_what_one_process_would_do(folders: dict[str, Path], tokenizer: Any, ranks: int) -> None:
    whole = stream(folders, tokenizer)
    parts = [stream(folders, tokenizer, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in (0, 3, 40):
        hands = [part(drawn(part, step)) for part in parts]
        one = whole(drawn(whole, step))
        places = hands[0].places
        assert all(hand.places == places for hand in hands)
        assert sorted(place for hand in places for place in hand) == list(range(len(one.ids)))
        assert all(places), "every rank has something to do"
        for rank, hand in enumerate(hands):
            assert hand.ids == [one.ids[place] for place in places[rank]]
            assert hand.skip == [one.skip[place] for place in places[rank]]
            for name in ("query_ids", "passage_ids", "known_ids", "anchor_passage", "passage_documents"):
                assert getattr(hand.relations, name).tolist() == getattr(one.relations, name).tolist()
            assert (hand.queries, hand.truncated, hand.sources) == (7, one.truncated, one.sources)
        loads = [sum(map(len, hand.ids)) for hand in hands]
        assert max(loads) - min(loads) <= 24, "no further apart than the longest text"


def test_token_sequences_are_those_of_the_texts(folders: dict[str, Path], tokenizer: Any) -> None:
    made = stream(folders, tokenizer)
    draw = drawn(made, 2)
    rows, hand = texts_of(made, 2), made(draw)
    shards, _ = load_sources({"pairs": 1.0, "synth": 1.0}, folders)
    assert hand.draw is draw
    assert hand.samples == draw.samples
    assert [shards[source].take([row])[0]["query"] for source, row in hand.samples] == [r.query for r in rows]
    texts = [f"tanya: {r.query}" for r in rows] + [p for r in rows for p in r.passages]
    wanted = [tokenizer(text)["input_ids"] for text in texts]
    assert hand.truncated == sum(len(ids) > 24 for ids in wanted) > 0
    assert hand.ids == [ids if len(ids) <= 24 else [*ids[:23], ids[-1]] for ids in wanted]
    assert draw.duplicates == 0


def test_any_step_is_reached_at_once_and_prefetching_changes_nothing(folders: dict[str, Path], tokenizer: Any) -> None:
    made = stream(folders, tokenizer)
    walked = [made(drawn(made, step)).ids for step in range(12)]
    assert stream(folders, tokenizer)(drawn(stream(folders, tokenizer), 11)).ids == walked[11]
    ahead = stream(folders, tokenizer)
    with Prefetch(lambda step: ahead(drawn(ahead, step)), range(12)) as hands:
        assert [hand.ids for hand in hands] == walked


def test_seed_and_data_choose_the_order(folders: dict[str, Path], tokenizer: Any) -> None:
    def first(**changed: Any) -> list[list[int]]:
        made = stream(folders, tokenizer, **changed)
        return made(drawn(made, 0)).ids

    assert first() == first()
    assert first(seed=5) != first()


def test_an_epoch_uses_every_pair_once_and_no_batch_repeats_a_text(folders: dict[str, Path], tokenizer: Any) -> None:
    made = stream(folders, tokenizer, order_batch=6)  # ten batches an epoch
    for epoch in (0, 1):
        batches = [texts_of(made, epoch * 10 + step) for step in range(10)]
        assert len({r.query for batch in batches for r in batch}) == sum(ROWS.values())
        for batch in batches:
            assert max(Counter(p for r in batch for p in r.passages[: r.positives]).values()) == 1
    careless = stream(folders, tokenizer, order_batch=6, avoid_duplicates=False)
    repeats = [Counter(p for r in texts_of(careless, step) for p in r.passages[: r.positives]) for step in range(20)]
    assert any(max(found.values()) > 1 for found in repeats), "there is something to avoid"


def test_homogeneous_batches_hold_one_source(folders: dict[str, Path], tokenizer: Any) -> None:
    made = stream(folders, tokenizer, homogeneous=True)
    sources = [made(drawn(made, step)).sources for step in range(34)]
    assert {"pairs"} in map(set, sources)
    assert {"synth"} in map(set, sources)
    assert sum(len(names) > 1 for names in sources) <= 2 * 4, "four epochs: what is left of each source may mix"
    mixed = stream(folders, tokenizer)
    assert sum(len(mixed(drawn(mixed, step)).sources) > 1 for step in range(8)) > 4


def test_half_a_batch_of_one_source_is_of_one_source(folders: dict[str, Path], tokenizer: Any) -> None:
    # the blocks keep the batch of the first start: 6 pairs, walked through in threes
    made = stream(folders, tokenizer, order_batch=6, homogeneous=True)
    draws = Draws(made.order, batch=3, end=120, arrangement=made.arrangement)
    whole = [set(made(drawn(made, step)).sources) for step in range(20)]
    for step in range(40):
        assert set(made(draws(step + 1)).sources) <= whole[step // 2]


def test_sources_that_are_missing_or_empty_are_a_mistake_with_a_fix(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "empty", "pairs"):
        pass
    with pytest.raises(UserError, match="none of these sources has pairs"):
        load_sources({"mine": 0.3, "pairs": 1.0}, {"pairs": tmp_path / "empty", "synth": tmp_path / "empty"})
