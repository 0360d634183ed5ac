"""Packing, and attention that never crosses a sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.packing import pack, token_chunks


@given(st.lists(st.integers(1, 100), min_size=1, max_size=50), st.integers(50, 300))
def test_chunks_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    chunks = token_chunks(lengths, budget)
    assert sorted(i for c in chunks for i in c) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in c) <= budget or len(c) == 1 for c in chunks)


SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


def states(folder: Path, sequences: list[list[int]], *, bidirectional: bool):
    import torch

    from train.encoder import load_backbone

    model = load_backbone(folder, bidirectional=bidirectional, precision="fp32").eval()
    packed = pack(sequences)
    with torch.no_grad():
        return model(**packed.model_inputs()).last_hidden_state[0].split(packed.lengths)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_equals_alone(world_folder: Path, bidirectional: bool) -> None:
    import torch
    from transformers import AutoModel

    plain = AutoModel.from_pretrained(world_folder / "model", attn_implementation="eager").eval()
    plain.config.is_causal = not bidirectional
    together = states(world_folder / "model", SEQUENCES, bidirectional=bidirectional)
    for sequence, got in zip(SEQUENCES, together, strict=True):
        with torch.no_grad():
            wanted = plain(input_ids=torch.tensor([sequence])).last_hidden_state[0]
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_changed_token_stays_inside_its_sequence(world_folder: Path, bidirectional: bool) -> None:
    import torch

    before = states(world_folder / "model", SEQUENCES, bidirectional=bidirectional)
    changed = [list(s) for s in SEQUENCES]
    changed[2][3] = 200
    after = states(world_folder / "model", changed, bidirectional=bidirectional)
    for i in (0, 1, 3):
        assert torch.equal(before[i], after[i])
    earlier_moved = not torch.allclose(before[2][:3], after[2][:3], atol=1e-6)
    assert earlier_moved == bidirectional
    assert not torch.allclose(before[2][3:], after[2][3:], atol=1e-6)
