"""A ledger of any history of crashes is proven; every planted lie is found, with its line and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_fixture import BATCH, Records, Training, order_of, read, write

from train.history.records import LedgerFault, order_hash
from train.history.verify import verify


def told(path: Path) -> str:
    return "\n".join(verify(path).sentences())


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Three starts on 8, 4 and 8 processes over three epochs: a crash, a rewind, a stop."""
    training = Training(tmp_path / "ledger.jsonl")
    training.start(steps=6, ranks=8)
    training.start(
        after=4, steps=8, ranks=4, skipped={7: "loss nan", 8: "loss nan"},
        rewind=lambda step: (4, "2 bad steps in a row") if step == 8 else None, ending="SIGUSR1",
    )  # fmt: skip
    training.start(after=12, ranks=8)
    return training.path


def test_what_happened_is_told(ledger: Path) -> None:
    text = told(ledger)
    for part in (
        "An epoch is 88 samples (15 of 37 from mine, 50 from pairs, 23 from synth).",
        "3 epochs are complete: each used every sample exactly once, 264 in all.",
        "33 steps in 3 starts: 8 processes on 1 node (ZeRO 1, batch 8); after step 4 on 4 processes",
        "2 steps after a checkpoint were lost; 2 of them were computed again with the same samples.",
        "2 steps changed no weight: 7 (loss nan) and 8 (loss nan).",
        "A rewind after step 8 took the weights back to step 4 (2 bad steps in a row): 32 samples (places 32 to 63)",
        "samples of 35 steps, each drawn anew",
    ):
        assert part in text
    assert text.splitlines()[-1] == (
        "Proven: every sample was used exactly once in each of the 3 epochs, in the one order that data and seed give, "
        "through 3 starts on 8, 4 and 8 processes; what rewinds set aside was used, but is not in the weights."
    )


def test_a_run_under_way_is_proven_so_far(tmp_path: Path) -> None:
    training = Training(tmp_path / "ledger.jsonl")
    training.start(steps=15, ranks=1)
    text = told(training.path)
    assert "1 epoch is complete: each used every sample exactly once. Epoch 2 has used 32 of 88, none twice." in text
    assert "The phase is not over: 120 of 264 samples." in text
    assert text.splitlines()[-1] == (
        "Proven so far (step 15): every sample was used exactly once in the one epoch that is complete, and none twice in "
        "the one after, in the one order that data and seed give."
    )
    with training.path.open("ab") as file:
        file.write(b'{"kind":"step","step":16,"epo')
    assert "A crash left 29 bytes of an unfinished last line" in told(training.path)


def test_a_phase_shorter_than_an_epoch_claims_no_epoch(tmp_path: Path) -> None:
    training = Training(tmp_path / "ledger.jsonl", epochs=0.5)
    training.start()
    claim = told(training.path).splitlines()[-1]
    assert claim.startswith("Proven: no sample was used twice, and none was passed over, in the one order")


def test_nothing_done_is_nothing_proven(tmp_path: Path) -> None:
    training = Training(tmp_path / "ledger.jsonl")
    training.start(steps=0)
    assert told(training.path).splitlines()[-1] == "Nothing to prove yet: no step is done."


@given(
    starts=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([2, 4, 8, 16, 24]), st.integers(1, 5)), max_size=5),
    epochs=st.sampled_from([0.4, 1.0, 2.5]),
    block=st.sampled_from([None, BATCH]),
)
@settings(max_examples=25, deadline=None)
def test_any_honest_history_is_proven(
    tmp_path_factory: pytest.TempPathFactory, starts: list[tuple[int, int, int]], epochs: float, block: int | None
) -> None:
    path = tmp_path_factory.mktemp("l") / "ledger.jsonl"
    training = Training(path, epochs=epochs, order=order_of(block=block))
    for steps, batch, ranks in [*starts, (10**6, BATCH, 1)]:
        training.start(after=max(training.saved), steps=steps, batch=batch, ranks=ranks, save_every=3)
        if training.saved[max(training.saved)] == training.end:
            break
    proof = verify(path)
    assert proof.tape.ended
    assert proof.samples == training.end
    assert proof.complete == int(epochs)
    assert sum(proof.partial.values()) == training.end - proof.complete * training.order.epoch_rows


def at(records: Records, kind: str, step: int, nth: int = 0) -> int:
    """The index of the `nth` record of a kind and step."""
    return [i for i, r in enumerate(records) if (r["kind"], r.get("step")) == (kind, step)][nth]


def honest(records: Records, index: int, positions: list[int]) -> None:
    """Let a step use these positions, with everything else in its line as it would be."""
    step, order = records[index], order_of()
    places = range(step["first"], step["first"] + len(positions))
    step["moved"] = {str(a): b for a, b in zip(places, positions, strict=True) if a != b}
    step["order"] = order_hash([order[p] for p in positions])
    names, before = [s.name for s in order.sources], {n: r[0] for n, r in step["sources"].items()}
    counts = [names[order[p][0]] for p in positions]
    step["sources"] = {n: [before[n], before[n] + counts.count(n)] for n in names}
    running = {n: r[1] for n, r in step["sources"].items()}
    for later in records[index + 1 :]:
        if later["kind"] == "step":
            later["sources"] = {n: [running[n], running[n] + b - a] for n, (a, b) in later["sources"].items()}
            running = {n: r[1] for n, r in later["sources"].items()}


def positions_of(record: dict[str, object]) -> list[int]:
    moved = record["moved"]
    assert isinstance(moved, dict)
    return [moved.get(str(p), p) for p in range(record["first"], record["end"])]  # type: ignore[call-overload]


def skip_a_step(r: Records) -> int:
    del r[at(r, "step", 15)]
    return at(r, "step", 16)


def skip_samples(r: Records) -> int:
    index = at(r, "step", 15)
    for later in r[index:]:
        for key in ("first", "end") if later["kind"] == "step" else ():
            later[key] += BATCH
    return index


def repeat_a_step(r: Records) -> int:
    index = at(r, "step", 15)
    r.insert(index + 1, dict(r[index]))
    return index + 1


def repeat_its_places_under_the_next_number(r: Records) -> int:
    index = at(r, "step", 16)
    r[index] = r[at(r, "step", 15)] | {"step": 16}
    return index


def use_a_sample_twice(r: Records) -> int:
    index = at(r, "step", 16)
    positions = positions_of(r[index])
    positions[3] = positions_of(r[at(r, "step", 15)])[2]
    honest(r, index, positions)
    return index


def use_a_sample_twice_in_one_step(r: Records) -> int:
    index = at(r, "step", 16)
    positions = positions_of(r[index])
    positions[3] = positions[5]
    honest(r, index, positions)
    return index


def reorder_inside_a_step(r: Records) -> int:
    index, order = at(r, "step", 15), order_of()
    r[index]["order"] = order_hash([order[p] for p in reversed(positions_of(r[index]))])
    return index


def swap_two_steps(r: Records) -> int:
    a, b = at(r, "step", 15), at(r, "step", 16)
    r[a], r[b] = r[b], r[a]
    return a


def take_from_another_epoch(r: Records) -> int:
    index = at(r, "step", 15)  # places 112..119 are of the second epoch, and so is the window; the third begins at 176
    honest(r, index, [*positions_of(r[index])[:-1], 180])
    return index


def count_a_source_wrongly(r: Records) -> int:
    index = at(r, "step", 15)
    r[index]["sources"]["pairs"][1] += 1
    return index


def compute_again_with_other_samples(r: Records) -> int:
    index = at(r, "step", 5, 1)
    honest(r, index, positions_of(r[index])[::-1])
    return index


def start_over_in_silence(r: Records) -> int:
    index = [i for i, x in enumerate(r) if x["kind"] == "start"][1]
    r[index] |= {"step": 0, "position": 0}
    return index


def go_on_from_an_unsaved_step(r: Records) -> int:
    index = [i for i, x in enumerate(r) if x["kind"] == "start"][1]
    r[index] |= {"step": 6, "position": 48}
    return index


def hide_a_start(r: Records) -> int:
    index = [i for i, x in enumerate(r) if x["kind"] == "start"][1]
    del r[index : at(r, "checkpoint", 8)]
    return index


def set_more_aside(r: Records) -> int:
    index = at(r, "rewind", 8)
    r[index]["first"] -= BATCH
    return index


def rewind_to_an_unsaved_step(r: Records) -> int:
    index = at(r, "rewind", 8)
    r[index] |= {"to_step": 3, "first": 24}
    return index


def claim_the_end_too_early(r: Records) -> int:
    index = at(r, "step", 20)
    del r[index:-1]
    r[-1]["step"] = 19
    return index


def cut_out_the_middle(r: Records) -> int:
    del r[at(r, "step", 14) : at(r, "step", 25)]
    return at(r, "step", 25)


def change_the_seed(r: Records) -> int:
    r[0]["seed"] += 1
    return at(r, "step", 1)


def claim_fewer_samples_an_epoch(r: Records) -> int:
    r[0]["epoch_samples"] -= 1
    return 0


def another_batch_size(r: Records) -> int:
    index = at(r, "step", 15)
    r[index]["end"] -= 1
    return index


def leave_out_a_fact(r: Records) -> int:
    index = at(r, "step", 15)
    del r[index]["moved"]
    return index


def a_number_where_a_table_belongs(r: Records) -> int:
    index = at(r, "step", 15)
    r[index]["moved"] = 3
    return index


LIES: dict[Callable[[Records], int], str] = {
    skip_a_step: "is step 16, but step 15 comes after step 14",
    skip_samples: "step 15 leaves out the places 112..119: it begins at 120",
    repeat_a_step: "is step 15, but step 16 comes after step 15",
    repeat_its_places_under_the_next_number: "step 16 repeats the places 112..119",
    use_a_sample_twice: "step 16 uses row .* of source .* again in epoch 2",
    use_a_sample_twice_in_one_step: "step 16 uses row .* of source .* again in epoch 2",
    reorder_inside_a_step: "step 15 was handed other samples, or in another order",
    swap_two_steps: "is step 16, but step 15 comes after step 14",
    take_from_another_epoch: "uses position 180 at place 119",
    count_a_source_wrongly: "step 15 counts its sources as",
    compute_again_with_other_samples: "step 5 was computed again with other samples than in line 8",
    start_over_in_silence: "starts over, although the checkpoint after step 4 was there",
    go_on_from_an_unsaved_step: "goes on after step 6, for which no checkpoint vouches",
    hide_a_start: "is a checkpoint after step 8, but the last step was 6",
    set_more_aside: "sets the places 24..63 aside, but those since step 4 begin at 32",
    rewind_to_an_unsaved_step: "rewinds to step 3, for which no checkpoint vouches",
    claim_the_end_too_early: "the places 152..263 were not used",
    cut_out_the_middle: "is step 25, but step 14 comes after step 13",
    change_the_seed: "step 1 was handed other samples",
    claim_fewer_samples_an_epoch: "says 87 samples an epoch; its sources have 88",
    another_batch_size: "step 15 covers the places 112..118, which is no batch of 8",
    leave_out_a_fact: "lacks a fact",
    a_number_where_a_table_belongs: "lacks a fact, or has one of the wrong kind",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_that_was_sealed_anew_is_found(ledger: Path, lie: Callable[[Records], int]) -> None:
    records = read(ledger)
    index = lie(records)
    write(ledger, records, sealed=True)
    with pytest.raises(LedgerFault, match=LIES[lie]) as found:
        verify(ledger)
    assert found.value.line == index + 1


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_the_same_lie_under_the_old_seals_is_found_at_its_first_line(
    ledger: Path, lie: Callable[[Records], int]
) -> None:
    before, records = read(ledger), read(ledger)
    lie(records)
    write(ledger, records, sealed=False)
    first = next(i for i, (a, b) in enumerate(zip(before, records, strict=False)) if a != b)
    with pytest.raises(LedgerFault, match="seal") as found:
        verify(ledger)
    assert found.value.line == first + 1


def test_a_changed_number_that_no_rule_speaks_of_breaks_the_seal(ledger: Path) -> None:
    records = read(ledger)
    records[at(records, "step", 20)]["loss"] = 0.001
    write(ledger, records, sealed=False)
    with pytest.raises(LedgerFault, match="edited, removed, put in or moved") as found:
        verify(ledger)
    assert found.value.line == at(records, "step", 20) + 1


def test_a_whole_last_line_that_was_changed_is_not_taken_for_a_torn_one(ledger: Path) -> None:
    ledger.write_bytes(ledger.read_bytes().replace(b'"kind":"end","step":33', b'"kind":"end","step":34'))
    with pytest.raises(LedgerFault, match="its seal is wrong"):
        verify(ledger)


def test_lines_missing_at_the_end_are_found_by_what_the_checkpoint_knew(ledger: Path) -> None:
    from train.history.ledger import Ledger

    opened = Ledger.open(ledger, {})
    mark = opened.mark()
    opened.close()
    assert verify(ledger, mark=mark).against_checkpoint
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-3]))
    assert verify(ledger).tape.step < 33
    with pytest.raises(LedgerFault, match="the newest checkpoint was written with a longer ledger"):
        verify(ledger, mark=mark)


class Rows:
    def __init__(self, rows: int, fingerprint: str) -> None:
        self.rows, self.fingerprint = rows, fingerprint

    def __len__(self) -> int:
        return self.rows


def test_the_data_of_now_are_compared(ledger: Path) -> None:
    data = {"mine": Rows(37, "aa"), "pairs": Rows(50, "bb"), "synth": Rows(23, "cc")}
    assert "the data that are there are those of the run" in "\n".join(verify(ledger, shards=data).sentences())
    for changed, wrong in (
        (data | {"pairs": Rows(51, "bb")}, "had 50 rows, and now has 51"),
        (data | {"synth": Rows(23, "cd")}, "their fingerprint is another one"),
        ({"mine": data["mine"]}, "'pairs', whose data are not there"),
    ):
        with pytest.raises(LedgerFault, match=wrong):
            verify(ledger, shards=changed)


def test_a_ledger_without_a_whole_line_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(b'{"kind":"header","for')
    with pytest.raises(LedgerFault, match="no whole line"):
        verify(tmp_path / "l")
