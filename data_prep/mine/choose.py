"""The rules and the draw, block by block; a block may be computed in another process or on another machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.fanout import Fanout, Serial
from data_prep.files import read_json, write_json
from data_prep.mine.policy import Policy, Rule
from data_prep.mine.sampling import chances, draw
from data_prep.mine.sides import Side
from data_prep.mine.vetoes import Block, by_numbers, by_vectors, same_text
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = 4096
_ARRAYS = ("rows", "scores", "candidates", "candidate_scores", "own_keys")


def skipped(rule: Rule) -> str:
    """What counts call the candidates that a rule took away."""
    return f"skipped_negative_{rule}"


@dataclass
class Choice:
    """q queries with their positives and their candidates, from which negatives are chosen.

    Attributes:
        rows, scores: [q, P] positives as rows of `positives`, -1 for none, and their scores.
        candidates, candidate_scores: [q, m] rows of the corpus, nearest first, -1 for none, and their scores.
        own_keys: [q] keys of the texts that the queries were cut from. ids: [q] hexadecimal; they seed draws.
        spare: how many more to draw than are wanted, for those that are taken away later.
    """

    policy: Policy
    queries: Side
    corpus: Side
    positives: Side
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    candidates: NDArray[np.int64]
    candidate_scores: NDArray[np.float32]
    own_keys: NDArray[np.uint64]
    ids: Sequence[str]
    seed: int
    spare: int

    def save(self, folder: Path) -> str:
        """Write everything to a folder; returns a digest of all that the rules read: what a block is known by."""
        import numpy as np

        self.queries.save(folder / "queries")
        self.corpus.save(folder / "corpus")
        if self.positives is not self.corpus:
            self.positives.save(folder / "positives")
        told = {
            "policy": self.policy.model_dump(mode="json"), "seed": self.seed, "spare": self.spare,
            "ids": list(self.ids), "known": self.positives is not self.corpus,
        }  # fmt: skip
        write_json(folder / "choice.json", told)
        digest = hashlib.blake2b((folder / "choice.json").read_bytes(), digest_size=16)
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            np.save(folder / f"{name}.npy", array)
            digest.update(array.data)
        known: dict[int, bytes] = {}
        for side in (self.queries, self.corpus, self.positives):
            digest.update(side.digest(known))
        return digest.hexdigest()


@lru_cache(maxsize=1)
def _load(folder: str, digest: str) -> Choice:
    """A saved choice, opened memory-mapped once a process."""
    import numpy as np

    place = Path(folder)
    told = read_json(place / "choice.json")
    corpus = Side.load(place / "corpus")
    arrays: dict[str, Any] = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    return Choice(
        policy=Policy.model_validate(told["policy"]),
        queries=Side.load(place / "queries"),
        corpus=corpus,
        positives=Side.load(place / "positives") if told["known"] else corpus,
        ids=told["ids"],
        seed=told["seed"],
        spare=told["spare"],
        **arrays,
    )


def choose(
    choice: Choice, *, fanout: Fanout | None, scratch: Path, progress: Progress
) -> tuple[NDArray[np.int64], dict[str, int], dict[str, int]]:
    """Which candidates are drawn, and what the rules took away.

    Returns:
        Columns [q, negatives_per_query + spare] of the candidates in the order of the draw, -1 for none; counts by
        rule, one after another; counts of every rule by itself (of rules that read vectors: of what the others left).
    """
    import numpy as np

    folder = (scratch / "choice").absolute()
    digest = choice.save(folder)
    total = len(choice.ids)
    parts = [
        {"folder": str(folder), "start": start, "stop": min(start + _BLOCK, total), "digest": digest}
        for start in range(0, total, _BLOCK)
    ]
    results = (fanout or Serial()).map(
        "data_prep.mine.choose:choose_block", parts, scratch=scratch, label="choose", progress=progress
    )
    _load.cache_clear()
    counts: dict[str, int] = {}
    alone: dict[str, int] = {}
    for result in results:
        for sums, found in ((counts, result["counts"]), (alone, result["alone"])):
            for name, count in found.items():
                sums[name] = sums.get(name, 0) + count
    return np.concatenate([np.load(folder / result["file"]) for result in results]), counts, alone


def choose_block(folder: str, start: int, stop: int, digest: str) -> dict[str, Any]:
    """Apply the rules to the queries [start, stop) of a saved choice and draw.

    Args:
        digest: of the choice, so that the result of another one is not taken for this.

    Returns:
        The `file` of the columns in the folder; `counts` of what every rule took away, and `alone` by itself.
    """
    import numpy as np

    choice, part = _load(folder, digest), slice(start, stop)
    block = Block(
        queries=choice.queries.rows(np.arange(start, stop)),
        positives=choice.positives,
        corpus=choice.corpus,
        chosen=np.asarray(choice.rows[part]),
        chosen_scores=np.asarray(choice.scores[part]),
        candidates=np.asarray(choice.candidates[part]),
        scores=np.asarray(choice.candidate_scores[part]),
        own_keys=np.asarray(choice.own_keys[part]),
    )
    left = block.there
    counts, alone = {"candidates": int(left.sum())}, {}
    vetoed = same_text(block)
    counts["skipped_same_text"] = int((left & vetoed).sum())
    left = left & ~vetoed
    for rules in (by_numbers, by_vectors):
        asked = left
        for rule, mask in rules(choice.policy, block, asked):
            counts[skipped(rule)], alone[skipped(rule)] = int((left & mask).sum()), int((asked & mask).sum())
            left = left & ~mask
    keys = block.corpus.keys[np.maximum(block.candidates, 0)]
    chance = chances(block.queries.keys[:, None], keys, seed=choice.seed)
    drawn = draw(
        choice.policy, left, block.scores, chance, spare=choice.spare, seed=choice.seed, query_ids=choice.ids[part]
    )
    name = f"drawn-{digest[:12]}-{start}.npy"
    beside = Path(folder) / f".{name}"
    np.save(beside, drawn)
    beside.replace(Path(folder) / name)
    return {"file": name, "counts": counts, "alone": alone}
