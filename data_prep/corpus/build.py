"""Raw text → cleaned, distinct documents that no evaluation set holds.

Three passes: parts of the input are cleaned (each on its own, any number at once), copies are found among all of them,
and what stays is written part by part. Invariants: no two kept documents share a `text_key` or are near copies, and
none overlaps an evaluation set; documents keep the order of the input; neither the workers nor the cut into parts nor a
crash in the middle changes which documents are kept; memory holds one batch of documents, whatever the corpus.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import Piece, plan_parts
from data_prep.corpus.idents import repeated_idents
from data_prep.corpus.limit import apply_limit
from data_prep.corpus.near import find_duplicates
from data_prep.corpus.part import HELD_OUT, IDENTS, SIGNATURES, TEXTS, TRAINING
from data_prep.corpus.report import RULES, Tally, report_of, shown
from data_prep.errors import UserError
from data_prep.evaluation_sets import set_files
from data_prep.fanout import Fanout, Serial
from data_prep.files import read_json, write_json
from data_prep.progress import Progress
from data_prep.shards import Shards, gather_shards

__all__ = ["CorpusConfig", "build_corpus"]
REPORT = "report.json"
_NAMED = 5
_ALWAYS = ("files", "read", "too_short", "duplicates", "near_duplicates", "evaluation_overlap", "kept", "characters")


def build_corpus(
    config: CorpusConfig,
    *,
    evaluation_sets: list[Path],
    out: Path,
    progress: Progress,
    seed: int = 0,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
) -> dict[str, int | float]:
    """Read, clean, deduplicate and decontaminate; write a shard folder of kind `documents` to `out`.

    With `held_out` another one is written to `out/held_out`. `out/report.json` tells what each rule removed.

    Args:
        seed: of the held-out split.
        fanout: who cleans the parts; None computes them here.
        scratch: a folder that outlives a crash: with it, finished parts are not cleaned again. None: inside `out`, and
            removed at the end.

    Returns:
        Counts: `files`; of documents `read`, `kept` and removed by each rule of `report.RULES`; `characters` kept;
            `private_KIND` replaced; `duplicate_ids`.

    Raises:
        UserError: a pattern without files, a file that cannot be read, an evaluation set that is none, an overlap where
            `decontaminate.on_overlap` is `fail`, or no document left at the end.
    """
    fanout = fanout or Serial()
    place = (scratch or out / ".scratch").absolute()
    place.mkdir(parents=True, exist_ok=True)
    with progress.work("prepare"):
        parts = plan_parts(config)
        tally = Tally()
        folders, rows = _clean(parts, config, evaluation_sets, place, fanout, progress, tally)
        _check_overlaps(tally, config)
        _count_idents(folders, tally)
        verdicts = _find_copies(folders, rows, config, place, progress)
        kept = _keep(folders, verdicts, config, seed, place, fanout, progress, tally)
        tally.counts["files"] = len({piece["path"] for part in parts for piece in part})
        _check_left(tally, config)
        gather_shards([folder / TRAINING for folder in kept], out, "documents")
        if config.held_out:
            gather_shards([folder / HELD_OUT for folder in kept], out / HELD_OUT, "documents")
        report = report_of(tally)
        write_json(out / REPORT, report)
        if scratch is None:
            shutil.rmtree(place)
    return _counts(tally)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _clean(
    parts: list[list[Piece]],
    config: CorpusConfig,
    sets: list[Path],
    place: Path,
    fanout: Fanout,
    progress: Progress,
    tally: Tally,
) -> tuple[list[Path], list[list[int]]]:
    """The first pass: folders of the parts, and the rows of their pieces."""
    # what neither reading nor cleaning looks at must not clean everything anew
    settings = config.model_dump(mode="json", exclude={"files", "part_mb", "held_out"})
    settings["files"] = ["unused"]
    sets_given = [str(s.absolute()) for s in sets]
    stamps = [[f.stat().st_size, f.stat().st_mtime_ns] for s in sets for f in set_files(s)]
    asked: list[dict[str, Any]] = []
    for number, pieces in enumerate(parts):
        name = f"part-{number:05d}-{_digest([pieces, settings, sets_given, stamps])}"
        asked.append({"pieces": pieces, "config": settings, "sets": sets_given, "folder": str(place / name)})
    told = fanout.map("data_prep.corpus.part:clean_part", asked, scratch=place, label="clean", progress=progress)
    for one in told:
        tally.add(one["tally"])
    return [Path(one["folder"]) for one in asked], [one["rows"] for one in told]


def _check_overlaps(tally: Tally, config: CorpusConfig) -> None:
    found = tally.counts["evaluation_overlap"]
    if not found or config.decontaminate.on_overlap == "remove":
        return
    named = [f"“{s['text'][:80]}” of {s['source']} repeats {s['repeats']}" for s in tally.samples["evaluation_overlap"]]
    more = f"; and {found - _NAMED} more" if found > _NAMED else ""
    raise UserError(
        "; ".join(named[:_NAMED]) + more,
        f"{found} of {tally.counts['read']} documents repeat evaluation texts",
        'take them out of corpus.files, or leave them out with corpus.decontaminate.on_overlap = "remove"',
    )


def _count_idents(folders: list[Path], tally: Tally) -> None:
    with_idents = [folder / IDENTS for folder in folders if (folder / IDENTS).exists()]
    if with_idents:
        repeated, samples = repeated_idents(with_idents)
        tally.count("duplicate_ids", amount=repeated)
        for sample in samples:
            tally.sample("duplicate_ids", sample)


def _find_copies(
    folders: list[Path], rows: list[list[int]], config: CorpusConfig, place: Path, progress: Progress
) -> str:
    """The second pass: verdicts beside the signatures. Returns a name for them, which another input does not share."""
    limit = config.max_documents_per_file
    name = _digest([[f.name for f in folders], config.near.model_dump(mode="json"), limit])
    done = place / "copies.json"
    if not done.exists() or read_json(done) != name:
        done.unlink(missing_ok=True)
        signatures = [folder / SIGNATURES for folder in folders]
        find_duplicates(signatures, config.near, place, progress)
        if limit is not None:
            apply_limit(signatures, rows, limit)
        write_json(done, name)
    return name


def _keep(
    folders: list[Path],
    verdicts: str,
    config: CorpusConfig,
    seed: int,
    place: Path,
    fanout: Fanout,
    progress: Progress,
    tally: Tally,
) -> list[Path]:
    """The third pass: folders with what is kept of each part."""
    split = {"fraction": config.held_out, "seed": seed, "capped": config.max_documents_per_file is not None}
    asked: list[dict[str, Any]] = [
        {
            "folder": str(folder),
            "verdicts": verdicts,
            "out": str(place / f"kept-{number:05d}-{_digest([folder.name, verdicts, split])}"),
            "number": number,
            **split,
        }
        for number, folder in enumerate(folders)
    ]
    for one in fanout.map("data_prep.corpus.part:keep_part", asked, scratch=place, label="keep", progress=progress):
        tally.add(one["tally"])
    for rule in ("duplicates", "near_duplicates"):
        places = tally.samples.get(rule, [])
        tally.samples[rule] = [
            {"text": _text(folders, part, row), "repeats": _text(folders, of_part, of_row)}
            for part, row, of_part, of_row in places
        ]
    return [Path(one["out"]) for one in asked]


def _text(folders: list[Path], part: int, row: int) -> str:
    """The beginning of one cleaned text."""
    return shown(Shards(folders[part] / TEXTS, "documents", verify=False).take([row])[0]["text"])


def _check_left(tally: Tally, config: CorpusConfig) -> None:
    if tally.counts["kept"]:
        return
    removed = [f"{tally.counts['read']} read"]
    removed += [f"{tally.counts[rule]} {meaning}" for rule, meaning in RULES.items() if tally.counts[rule]]
    removed = [r.replace("under min_chars", f"under {config.min_chars} characters") for r in removed]
    raise UserError(
        f"corpus.files = {config.files}",
        f"leaves no document ({', '.join(removed)})",
        "give more text, or loosen the rule that removed it",
    )


def _counts(tally: Tally) -> dict[str, int | float]:
    """The counts that a stage records: the usual ones always, the others where they are not 0."""
    return {**dict.fromkeys(_ALWAYS, 0), **{name: int(n) for name, n in sorted(tally.counts.items()) if n}}
