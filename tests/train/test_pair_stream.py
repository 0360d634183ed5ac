"""Batches are functions of data, seed and step; ranks divide them, and never choose them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.pairs.row import pair_row
from data_prep.shards import Shards, ShardWriter
from train.cursor import GlobalOrder, Source
from train.draws import Draw, Draws
from train.encoder import EncoderConfig
from train.finetune_config import FinetuneConfig
from train.loader import Prefetch
from train.pair_stream import PairStream, blend_table, choose, load_blend, load_sources, open_source, source_of
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


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pairs of three sources, mixed, and mined ones of one."""
    found = {name: tmp_path_factory.mktemp(f"labelled-{name}") for name in ("pairs", "mine")}
    for name, folder in found.items():
        with ShardWriter(folder, "pairs", rows_per_file=13) as writer:
            for i in range(70):
                source = ("legal_ms", "legal_en", "twitter")[(i * i + i // 3) % 3] if name == "pairs" else "news"
                writer.append(pair_row(f"{name} {source} {i}", [f"jawab {name} {i % 35}"], [], source, "ms"))
    return found


def test_without_entries_for_sources_the_order_is_what_it_was(folders: dict[str, Path], tokenizer: Any) -> None:
    made = stream(folders, tokenizer)
    fingerprints = [Shards(folders[name], "pairs").fingerprint for name in ("pairs", "synth")]
    order = GlobalOrder(
        [Source("pairs", 37, 1.0), Source("synth", 23, 1.0)], fingerprint="/".join(fingerprints), seed=4
    )
    assert made.order.facts() == order.facts()
    assert made.order.batch(0, 200) == order.batch(0, 200)


def test_sources_of_a_stage_are_read_by_their_own_rows(labelled: dict[str, Path]) -> None:
    shards, sources = load_sources({"pairs": 1.0, "pairs:legal_*": 0.5, "mine": 0.3}, labelled)
    assert [s.name for s in sources] == ["mine", "pairs:legal_en", "pairs:legal_ms", "pairs:twitter"]
    by_hand = Counter(row["source"] for row in Shards(labelled["pairs"], "pairs"))
    for part, source in zip(shards[1:], sources[1:], strict=True):
        name = source.name.removeprefix("pairs:")
        assert source.rows == len(part) == by_hand[name] > 5
        rows = part.take(list(range(len(part)))[::-1])
        assert [r["query"] for r in rows][::-1] == [
            r["query"] for r in Shards(labelled["pairs"], "pairs") if r["source"] == name
        ]
    assert shards[2].take([]) == []


def test_sources_of_an_order_are_found_again(labelled: dict[str, Path]) -> None:
    shards, sources = load_sources({"pairs:legal_*": 0.5, "mine": 0.3}, labelled)
    for part, source in zip(shards, sources, strict=True):
        again = open_source(source.name, labelled[source.name.partition(":")[0]])
        assert (len(again), again.fingerprint) == (source.rows, part.fingerprint)
        assert again.take([0, 3]) == part.take([0, 3])
    assert len(open_source("pairs:none", labelled["pairs"])) == 0


def test_the_table_tells_what_training_takes(labelled: dict[str, Path]) -> None:
    blend = {"pairs": 1.0, "pairs:legal_*": 0.5, "mine": 0.3}
    for more in ({}, {"cap": 9}, {"temperature": 2.0}):
        _, portions = load_blend(blend, labelled, **more)  # type: ignore[arg-type]
        lines = blend_table(blend, labelled, **more)  # type: ignore[arg-type]
        assert [(line.split()[0], int(line.split()[2])) for line in lines[1:-1]] == [
            (p.name, p.rows_per_epoch) for p in portions
        ]


@pytest.mark.parametrize("more", [{"cap": 9}, {"temperature": 2.0}, {"cap": 12, "temperature": 1.5}, {}])
def test_what_an_epoch_takes_is_what_was_planned(labelled: dict[str, Path], tokenizer: Any, more: Any) -> None:
    blend = {"pairs": 1.0, "pairs:legal_*": 0.5, "mine": 0.3}
    shards, portions = load_blend(blend, labelled, **more)
    made = PairStream(
        shards, [source_of(p) for p in portions], tokenizer=tokenizer, encoder=ENCODER, seed=4, order_batch=7,
        positives=1, hard_negatives=0, homogeneous=False, avoid_duplicates=True, rank=0, ranks=1,
    )  # fmt: skip
    rows = made.order.epoch_rows
    assert rows == sum(p.rows_per_epoch for p in portions)
    draws = Draws(made.order, batch=1, end=3 * rows, arrangement=made.arrangement)
    for epoch in range(3):
        taken = [
            (draw.samples[0], chosen.source, chosen.query)
            for step in range(epoch * rows, (epoch + 1) * rows)
            for draw in [draws(step + 1)]
            for _, chosen in made.rows(draw)
        ]
        assert len({query for _, _, query in taken}) == rows, "no row twice in an epoch"
        assert Counter(portions[place[0]].name for place, _, _ in taken) == {p.name: p.rows_per_epoch for p in portions}
        for (number, _), source, _ in taken:
            assert portions[number].source in (None, source)
    assert GlobalOrder.from_facts(made.order.facts()).batch(0, rows) == made.order.batch(0, rows)


def test_keys_of_a_source_are_those_of_its_rows(labelled: dict[str, Path], tokenizer: Any) -> None:
    shards, sources = load_sources({"pairs:legal_*": 1.0, "pairs:twitter": 1.0}, labelled)
    made = PairStream(
        shards, sources, tokenizer=tokenizer, encoder=ENCODER, seed=4, order_batch=14, positives=1, hard_negatives=0,
        homogeneous=False, avoid_duplicates=True, rank=0, ranks=1,
    )  # fmt: skip
    for step in range(5):  # each positive stands twice in the 70 pairs: a wrong key would leave two in a batch
        passages = [p for _, chosen in made.rows(drawn(made, step)) for p in chosen.passages]
        assert len(passages) == len(set(passages)) == 14


def test_a_share_written_from_a_count_gives_the_count_back() -> None:
    rng = random.Random(0)
    for _ in range(20000):
        rows = rng.randrange(1, 10 ** rng.randrange(1, 10))
        count = rng.randrange(1, rows + 1)
        assert Source("x", rows, count / rows).rows_per_epoch == count


def test_settings_of_a_blend() -> None:
    assert FinetuneConfig(blend_preset="paper").blend == {"synth": 1.0, "mine": 0.3}
    dumped = FinetuneConfig(blend_preset="paper", blend_cap=5).model_dump()
    assert FinetuneConfig.model_validate(dumped).blend == {"synth": 1.0, "mine": 0.3}
    assert FinetuneConfig(blend={"pairs:legal_*": 0.5, "mine": 1}).blended == {"pairs", "mine"}
    for changed, says in (
        ({"blend_preset": "paper", "blend": {"pairs": 1.0}}, "say different things"),
        ({"blend": {"pairs:": 1.0}}, "must be 'pairs', 'mine' or 'synth'"),
        ({"blend": {"pairs": 1.5}}, "less than or equal to 1"),
        ({"blend_temperature": 0.5}, "greater than or equal to 1"),
        ({"blend_cap": 0}, "greater than or equal to 1"),
        ({"blend_preset": "papre"}, "'paper'"),
    ):
        with pytest.raises(ValidationError, match=says):
            FinetuneConfig(**changed)  # type: ignore[arg-type]


def test_unset_blend_settings_leave_a_stage_as_it_was() -> None:
    names = {"blend_cap", "blend_temperature", "blend_preset"}
    plain = FinetuneConfig().essentials()
    assert not names & plain.keys()
    assert FinetuneConfig(blend_cap=7).essentials() == {**plain, "blend_cap": 7}
    assert FinetuneConfig(blend_preset="paper").essentials() == {**plain, "blend": {"synth": 1.0, "mine": 0.3}}


def test_negatives_get_harder_as_training_goes_on() -> None:
    mined = pair_row("q", ["p"], ["d", "b", "c", "a"], "mine", "ms", [0.9], [0.4, 0.2, 0.3, 0.1])

    def used(progress: float, wanted: int) -> list[str]:
        chosen = choose(mined, position=7, positives=1, hard_negatives=wanted, progress=progress)
        return chosen.passages[1:]

    assert [used(p, 1) for p in (0.0, 0.3, 0.6, 0.9, 1.0)] == [["a"], ["b"], ["c"], ["d"], ["d"]]
    assert [used(p, 2) for p in (0.0, 0.5, 1.0)] == [["a", "b"], ["b", "c"], ["c", "d"]]
    assert used(0.0, 9) == ["a", "b", "c", "d"]
    stored = pair_row("q", ["p"], ["x", "y"], "pairs", "ms")
    assert choose(stored, position=1, positives=1, hard_negatives=1, progress=0.0).passages == ["p", "x"]
    bare = pair_row("q", ["p"], [], "pairs", "ms")
    assert choose(bare, position=0, positives=1, hard_negatives=1, progress=0.5).passages == ["p"]
