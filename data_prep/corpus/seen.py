"""Which texts of an evaluation set stand in training text: all of them, not only the first that is found.

The other direction of the gate. Where evaluation text is made of one's own corpus, it is the set that must give way.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpus.config import CorpusConfig
from data_prep.fanout import Serial
from data_prep.files import sha256_file
from data_prep.shards import Shards

if TYPE_CHECKING:
    from data_prep.fanout import Fanout
    from data_prep.progress import Progress

_FILES = {"files": ["unused"]}


def seen_texts(
    folder: Path,
    training: Path,
    *,
    config: CorpusConfig | None,
    fanout: Fanout | None,
    scratch: Path,
    progress: Progress,
) -> set[tuple[str, str]]:
    """(part, id) of every text of the evaluation set `folder` that overlaps a text of the document shards `training`.

    Args:
        config: what evaluation text is cleaned like, and what counts as an overlap (`decontaminate`).
        scratch: a folder that outlives a crash.
    """
    config = config or CorpusConfig.model_validate(_FILES)
    shards = Shards(training, "documents", verify=False)
    asked = {
        "set_folder": str(folder.absolute()),
        "training": str(training.absolute()),
        "config": config.model_dump(mode="json") | _FILES,
        # what was compared counts for the same bytes only
        "fingerprints": [shards.fingerprint, *(sha256_file(f) for f in sorted(folder.iterdir()))],
    }
    parts = [asked | {"file": number} for number in range(len(shards.file_rows))]
    function = "data_prep.corpus.seen:seen_in_file"
    told = (fanout or Serial()).map(function, parts, scratch=scratch, label="seen", progress=progress)
    return {(part, ident) for one in told for part, ident in one["seen"]}


def seen_in_file(
    *, set_folder: str, training: str, config: dict[str, Any], fingerprints: list[str], file: int
) -> dict[str, Any]:
    """The texts of an evaluation set that overlap a text of one file of document shards; see `seen_texts`."""
    from data_prep.corpus.part import gate_for

    gate = gate_for([set_folder], CorpusConfig.model_validate(config))
    gate.remember()  # it may have served another file
    seen: set[tuple[str, str]] = set()
    for row in Shards(Path(training), "documents", verify=False).read_file(file):
        while (overlap := gate.find(row["text"])) is not None:
            seen.update((part, ident) for _, part, ident in gate.forget(overlap))
    gate.remember()
    return {"seen": sorted(seen)}
