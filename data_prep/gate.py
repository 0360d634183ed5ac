"""The last look before training: no text that a model will train on repeats an evaluation text.

Whatever stage made a text was to keep evaluation text out of it. This stage trusts none of them: it reads all training
text again, fails the run where anything overlaps (the message names both sides), and else writes the proof: what was
compared with what, and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep.corpus.config import CorpusConfig
from data_prep.fanout import Serial
from data_prep.files import write_json
from data_prep.progress import Progress
from data_prep.shards import Shards

if TYPE_CHECKING:
    from data_prep.fanout import Fanout

PROOF = "proof.json"
_FEW_ROWS = 20_000
"""Below this, starting processes costs more than looking."""


def prove(
    config: CorpusConfig,
    *,
    folders: Mapping[str, Path],
    evaluation_sets: list[Path],
    out: Path,
    progress: Progress,
    fanout: Fanout,
    scratch: Path,
) -> dict[str, int | float]:
    """Compare all training text with all evaluation texts; write `out/proof.json`.

    Args:
        config: how the corpus was cleaned (evaluation texts are also sought in that form), and, in `decontaminate`,
            what counts as an overlap.
        folders: name → shard folder; the one named `corpus` holds documents, the others pairs.

    Returns:
        Counts: sets, evaluation_texts, checked (training texts), overlapping (always 0).

    Raises:
        UserError: a training text repeats an evaluation text; names the first few of one part.
    """
    parts: list[dict[str, Any]] = []
    fingerprints: dict[str, str] = {}
    for name, folder in folders.items():
        kind: Literal["documents", "pairs"] = "documents" if name == "corpus" else "pairs"
        shards = Shards(folder, kind, verify=False)
        fingerprints[name] = shards.fingerprint
        first = 0
        for number, rows in enumerate(shards.file_rows):
            parts.append(
                {
                    "folder": str(folder.resolve()), "kind": kind, "name": name,
                    "file": number, "first_row": first, "rows": rows,
                    "sets": [str(path.resolve()) for path in evaluation_sets],
                    "corpus": config.model_dump(mode="json"),
                    "fingerprint": shards.fingerprint,
                }
            )  # fmt: skip
            first += rows
    if sum(part["rows"] for part in parts) < _FEW_ROWS:
        fanout = Serial()
    with progress.work("prepare"):
        results = fanout.map("data_prep.gate:check_part", parts, scratch=scratch, label="check", progress=progress)
    checked = dict.fromkeys(folders, 0)
    for part, result in zip(parts, results, strict=True):
        checked[part["name"]] += result["checked"]
    texts = max((result["evaluation_texts"] for result in results), default=0)
    write_json(
        out / PROOF,
        {
            "evaluation_sets": sorted(path.name for path in evaluation_sets),
            "evaluation_texts": texts,
            "checked": checked,
            "overlapping": 0,
            "measures": config.decontaminate.model_dump(mode="json"),
            "training_data": fingerprints,
        },
    )
    return {
        "sets": len(evaluation_sets),
        "evaluation_texts": texts,
        "checked": sum(checked.values()),
        "overlapping": 0,
    }


def check_part(
    *,
    folder: str,
    kind: Literal["documents", "pairs"],
    name: str,
    file: int,
    first_row: int,
    rows: int,
    sets: list[str],
    corpus: dict[str, Any],
    fingerprint: str,
) -> dict[str, int]:
    """Compare one file of a shard folder; see `prove`. `fingerprint` is part of what is asked, so that a part that was
    checked counts for the same bytes only."""
    from data_prep.corpus.decontaminate import check_training_text, texts_of
    from data_prep.corpus.part import gate_for

    gate = gate_for(sets, CorpusConfig.model_validate(corpus))
    found = Shards(Path(folder), kind, verify=False).read_file(file)
    checked = check_training_text(texts_of(found, kind, name, first_row=first_row), gate)
    return {"checked": checked, "evaluation_texts": len(gate)}
