"""Every system on the drawn queries of every set, as they are and damaged.

Invariant: nothing is skipped in silence. Each drawn query is ranked in each cell (a kind at a strength) by each system,
changed or not; a query that the damage left as it was counts with a loss of exactly 0. The numbers are added up before
anything is written, and the measurement fails where they do not agree.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.files import write_json
from eval.metrics import recall_at_k
from eval.robustness.config import RobustnessConfig
from eval.robustness.counterfactual import above, by_index, distractors
from eval.robustness.drawn import Asked, Cell, Drawn, ask, draw, outside_of
from eval.robustness.examples import Examples
from eval.robustness.kinds import KINDS, OUT_OF_DOMAIN
from eval.robustness.remember import Remembering
from eval.robustness.results import results_of
from eval.systems.dense import DenseRanker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.progress import Progress
    from eval.systems.listing import System
    from eval.systems.ranker import Ranker

K = 10
"""Recall is read at this rank."""
DEPTH = 100
"""Ranks that the examples can tell."""
_ASKED_AT_ONCE = 2000
_CELLS_AT_ONCE = 8_000_000
"""Scores of complete rankings held at a time: 100 MB with their indices."""


@dataclass
class Measured:
    """What one system did on one set.

    Attributes:
        clean: float64 [queries], recall of the drawn queries as they are.
        damaged: cell → the same when damaged.
        noticed: cell → float64 [queries], see `counterfactual.above`.
        inside, outside: float32, the best score of each drawn query and of each that the set cannot answer.
    """

    clean: NDArray[np.float64]
    damaged: dict[Cell, NDArray[np.float64]] = field(default_factory=dict)
    noticed: dict[Cell, NDArray[np.float64]] = field(default_factory=dict)
    inside: NDArray[np.float32] | None = None
    outside: NDArray[np.float32] | None = None


def measure(
    config: RobustnessConfig, *, sets: list[Path], systems: Sequence[System], out: Path, seed: int, progress: Progress
) -> dict[str, int | float]:
    """Measure the systems on the sets and write `robustness.json` to the folder `out`.

    Args:
        config: the [eval.robustness] table.
        sets: folders of evaluation sets, names (last parts) unique; files of sentence pairs among them rank nothing
            and are passed over.
        systems: loaded and freed one after the other; `config.systems` may name some of them.
        out: an existing folder.
        seed: of the drawn queries, the damage and the bootstrap.
        progress: counts ranking as work "encode" and the metrics as work "score".

    Returns:
        Counts: systems, sets, queries, cells, asked (queries of all cells), changed, unchanged, rankings.

    Raises:
        UserError: no set or system, names that clash or are not there, a broken set, embeddings that are not finite.
    """
    chosen = _chosen(systems, config.systems)
    sets = [path for path in sets if not path.is_file()]
    _unique("evaluation sets", [path.name for path in sets])
    drawn = [draw(load_set(path), count=config.queries_per_set, seed=seed) for path in sets]
    cells = [(kind, strength) for kind in config.kinds if kind in KINDS for strength in config.strengths]
    asked = []
    for one in drawn:
        others = [other for other in drawn if other is not one] if OUT_OF_DOMAIN in config.kinds else []
        asked.append(ask(one, cells, outside_of(one, others, seed=seed), seed=seed))
    _say_alone(config, drawn, asked, progress)
    longer = sum(KINDS[kind].target != "query" for kind, _ in cells)
    each = sum(len(questions.texts) + longer * len(one.queries) for one, questions in zip(drawn, asked, strict=True))
    progress.begin("robustness", total=len(chosen) * each, unit="rankings")
    found: dict[tuple[str, str], Measured] = {}
    changed: dict[tuple[str, Cell], int] = {}
    examples = Examples(cells)
    for system in chosen:
        bench = _Bench(system, keep=longer > 0)
        for one, questions in zip(drawn, asked, strict=True):
            found[system.name, one.name] = _one(
                bench, one, questions, cells, seed=seed, changed=changed, examples=examples, progress=progress
            )
            bench.forget()
        del bench
        _free()
    with progress.work("score"):
        results = results_of(
            config, seed=seed, systems=chosen, drawn=drawn, asked=asked, cells=cells, found=found, changed=changed,
            examples=examples.chosen(),
        )  # fmt: skip
    write_json(out / "robustness.json", results)
    counts: dict[str, int | float] = results["counts"]
    return counts


def _chosen(systems: Sequence[System], names: Sequence[str]) -> list[System]:
    _unique("systems", [system.name for system in systems])
    there = {system.name: system for system in systems}
    for name in names:
        if name not in there:
            raise UserError(f"eval.robustness.systems: {name!r}", "is not compared", f"name some of {', '.join(there)}")
    return [system for system in systems if not names or system.name in names]


def _unique(what: str, names: Sequence[str]) -> None:
    if not names:
        raise UserError(f"robustness: no {what}", "at least one is needed", "name some")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"robustness: {what} named {twice[0]!r}", "two have the same name", "rename or leave out one")


def _say_alone(config: RobustnessConfig, drawn: Sequence[Drawn], asked: Sequence[Asked], progress: Progress) -> None:
    """Say which sets have no question from outside; refuse a measurement that consists of nothing else."""
    if OUT_OF_DOMAIN not in config.kinds:
        return
    alone = [one.name for one, questions in zip(drawn, asked, strict=True) if not questions.outside]
    if len(alone) == len(drawn) and config.kinds == [OUT_OF_DOMAIN]:
        raise UserError(
            f"robustness: {OUT_OF_DOMAIN} on {', '.join(alone)}",
            "needs queries of other sets that these corpora do not answer",
            "add a set on something else, or another kind",
        )
    if alone:
        progress.note(f"{OUT_OF_DOMAIN}: not measured on {', '.join(alone)}, for want of queries of other sets")


class _Bench:
    """A loaded system whose rankings are checked."""

    def __init__(self, system: System, *, keep: bool) -> None:
        self.name = system.name
        self._ranker: Ranker = system.load()
        self._memory: Remembering | None = None
        if keep and type(self._ranker) is DenseRanker:  # corpora differ in a few documents: embed those only
            self._memory = Remembering(self._ranker.embedder)
            self._ranker = DenseRanker(self._memory, name=self._ranker.name)

    def forget(self) -> None:
        """Drop the passages of the set before."""
        if self._memory is not None:
            self._memory.forget()

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As the system ranks; what breaks the contract of rankers is a defect, not a bad score."""
        import numpy as np

        k = min(k, len(documents))
        ranked, scores = self._ranker.rank(documents, queries, k)
        if ranked.shape != (len(queries), k) or scores.shape != ranked.shape or not np.isfinite(scores).all():
            raise RuntimeError(f"{self.name}: a ranking of shape {ranked.shape} for {len(queries)} queries and k {k}")
        return ranked, scores


def _one(
    bench: _Bench, drawn: Drawn, asked: Asked, cells: Sequence[Cell], *, seed: int,
    changed: dict[tuple[str, Cell], int], examples: Examples, progress: Progress,
) -> Measured:  # fmt: skip
    """One system on one set, in every cell."""
    import numpy as np

    ranked, scores = _asked(bench, drawn, asked.texts, progress)
    before = ranked[asked.clean]
    made = Measured(
        recall_at_k(before, drawn.relevant, k=K), inside=scores[asked.clean, 0], outside=scores[asked.outside, 0]
    )
    for cell in cells:
        damage = KINDS[cell[0]]
        if damage.target == "query":
            rows = asked.damaged[cell]
            after, touched = ranked[rows], np.not_equal(rows, asked.clean)
            texts = [(q, asked.texts[row]) for q, row in zip(drawn.queries, rows, strict=True)]
        elif damage.target == "documents":
            after, touched, texts = _damaged_documents(bench, drawn, cell, seed=seed, progress=progress)
        else:
            after, touched, texts, made.noticed[cell] = _beside(bench, drawn, cell, seed=seed, progress=progress)
        made.damaged[cell] = recall_at_k(after, drawn.relevant, k=K)
        count = int(np.count_nonzero(touched))
        if changed.setdefault((drawn.name, cell), count) != count:
            raise RuntimeError(f"{drawn.name}, {cell}: {count} queries changed for {bench.name}, fewer or more before")
        examples.see(bench.name, drawn, cell, before=before, after=after, touched=touched, texts=texts)
    return made


def _asked(
    bench: _Bench, drawn: Drawn, texts: Sequence[str], progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rankings of many queries, some at a time so that the progress moves."""
    import numpy as np

    parts = []
    for start in range(0, len(texts), _ASKED_AT_ONCE):
        block = texts[start : start + _ASKED_AT_ONCE]
        with progress.work("encode"):
            parts.append(bench.rank(drawn.documents, block, DEPTH))
        progress.advance(len(block), system=bench.name)
    return np.concatenate([ranked for ranked, _ in parts]), np.concatenate([scores for _, scores in parts])


_Ranked = tuple["NDArray[np.int64]", "NDArray[np.bool_]", list[tuple[str, str]]]


def _damaged_documents(bench: _Bench, drawn: Drawn, cell: Cell, *, seed: int, progress: Progress) -> _Ranked:
    """Rankings among damaged documents; a query counts as changed where a relevant document of it is."""
    import numpy as np

    kind, strength = cell
    made = [
        KINDS[kind](text, strength, seed=seed, key=ident)
        for ident, text in zip(drawn.document_ids, drawn.documents, strict=True)
    ]
    with progress.work("encode"):
        ranked, _ = bench.rank([m.text for m in made], drawn.queries, DEPTH)
    progress.advance(len(drawn.queries), system=bench.name)
    touched = np.array([any(made[d].changed for d in relevant) for relevant in drawn.relevant])
    first = [min(relevant) for relevant in drawn.relevant]
    return ranked, touched, [(drawn.documents[d], made[d].text) for d in first]


def _beside(
    bench: _Bench, drawn: Drawn, cell: Cell, *, seed: int, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[tuple[str, str]], NDArray[np.float64]]:
    """Rankings with counterfactual copies among the documents, and who kept the true passage above its copy."""
    import numpy as np

    copies = distractors(drawn, cell, seed=seed)
    documents = [*drawn.documents, *copies.texts]
    block = max(1, _CELLS_AT_ONCE // len(documents))
    first, scores = [], []
    with progress.work("encode"):
        for start in range(0, len(drawn.queries), block):
            ranked, found = bench.rank(documents, drawn.queries[start : start + block], len(documents))
            first.append(ranked[:, :DEPTH])
            scores.append(by_index(ranked, found))
    progress.advance(len(drawn.queries), system=bench.name)
    touched = np.array([any(d in copies.of for d in relevant) for relevant in drawn.relevant])
    texts = []
    for relevant in drawn.relevant:
        document = min((d for d in relevant if d in copies.of), default=min(relevant))
        copy = copies.texts[copies.of[document] - len(drawn.documents)] if document in copies.of else ""
        texts.append((drawn.documents[document], copy or drawn.documents[document]))
    return np.concatenate(first), touched, texts, above(np.concatenate(scores), drawn, copies)


def _free() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
