"""What is in a folder of shards: rows, files and their checksums, sources, languages, lengths, scores, duplicates.

Invariant: one pass, in memory that does not grow with the folder but for 8 bytes a row (to count repeated queries or
texts). Lengths and scores are counted to three significant digits, so that quantiles are exact to 0.5 %.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import content_id, read_json, sha256_file
from data_prep.progress import Progress
from data_prep.shards import KINDS, Shards

if TYPE_CHECKING:
    from data_prep.embed.store import StoredVectors

MANIFEST = "manifest.json"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BLOCK = 4096
Facts = dict[str, Any]
CountTokens = Callable[[str], int]


class Distribution:
    """Counts of numbers, rounded to three significant digits."""

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one number; one that is not finite counts as NaN."""
        if not math.isfinite(value):
            self._counts[math.nan] += 1
            return
        self._total += value
        self._counts[value if value == int(value) and abs(value) < 1000 else float(f"{value:.3g}")] += 1

    def facts(self) -> Facts:
        """count, mean, and the quantiles 0 to 1; `not_finite` where there are such numbers."""
        bad = self._counts.get(math.nan, 0)
        values = sorted(v for v in self._counts if not math.isnan(v))
        count = sum(self._counts[v] for v in values)
        if not count:
            return {"count": 0} | ({"not_finite": bad} if bad else {})
        found, seen, left = {}, 0, list(QUANTILES)
        for value in values:
            seen += self._counts[value]
            while left and seen >= max(1, math.ceil(left[0] * count)):
                found[f"{left.pop(0):g}"] = value
        return {"count": count, "mean": self._total / count, "quantiles": found} | ({"not_finite": bad} if bad else {})


def shard_folders(path: Path) -> list[Path]:
    """The shard folders in `path`: itself, or those below it, as in a run folder or one of its stages.

    Raises `UserError` that says what the path is instead, where there are none.
    """
    if (path / MANIFEST).is_file():
        return [path]
    if path.is_dir():
        found = sorted(
            p.parent
            for pattern in (f"*/{MANIFEST}", f"*/*/{MANIFEST}")
            for p in path.glob(pattern)
            if not any(part.startswith(".") for part in p.relative_to(path).parts) and _kind(p) is not None
        )
        if found:
            return found
    raise what_it_is(path)


def _kind(manifest: Path) -> str | None:
    """What a manifest says that its folder holds: a kind of shard, `vectors`, or None."""
    try:
        told = read_json(manifest)
    except UserError:
        return None
    kind = told.get("kind") if isinstance(told, dict) else None
    if isinstance(kind, dict):
        return "vectors"
    return kind if isinstance(kind, str) else None


def what_it_is(path: Path) -> UserError:
    """An error that says what a path is that holds no shards."""
    fix = "give a folder with a manifest.json: a stage of a run such as runs/NAME/corpus, or a run folder"
    if not path.exists():
        near = path.parent
        names = sorted(p.name for p in near.iterdir() if p.is_dir())[:12] if near.is_dir() else []
        return UserError(
            str(path), "no such folder", f"{near} holds: {', '.join(names)}" if names else "check the path"
        )
    if path.is_file():
        inside = path.suffix == ".parquet" and (path.parent / MANIFEST).exists()
        return UserError(str(path), "is a file, not a folder of shards", f"give {path.parent}" if inside else fix)
    names = sorted(p.name for p in path.iterdir())
    endings = Counter(Path(n).suffix for n in names)
    if "index.json" in names and any(".mds" in n for n in names):
        rule, fix = "is a MosaicML MDS data set", f'import it: [pairs] files = ["{path}"]'
    elif "qrels.tsv" in names:
        rule, fix = "is an evaluation set", "it is read by [eval] sets, as it is"
    elif "config.json" in names and endings[".safetensors"]:
        rule, fix = "is a model folder", "try it with `rumpun search`"
    elif "dataset_info.json" in names or "state.json" in names:
        rule, fix = (
            "is a folder of the library `datasets`",
            "write it as Parquet or JSON lines and name it in [corpus] files",
        )
    elif "recipe.toml" in names or "stage.json" in names:
        rule = "holds no finished shards"
        fix = "run the stage first (a stage that trains, evaluates or exports makes none)"
    elif any(e in (".jsonl", ".gz", ".zst", ".csv", ".tsv", ".parquet", ".txt") for e in endings):
        rule, fix = "holds raw files, not shards", "name it in [corpus] files or [pairs] files"
    elif not names:
        rule = "is an empty folder"
    else:
        shown = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
        rule = f"is not a folder of shards; it holds {shown}"
    return UserError(str(path), rule, fix)


def check_files(folder: Path) -> list[Facts]:
    """Each file that the manifest lists: name, rows, bytes, and `OK` or why it is BAD."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if isinstance(files, dict):  # a text store names its files by what they hold
        files = [{"name": name, **told} for name, told in sorted(files.items()) if isinstance(told, dict)]
    if not isinstance(files, list) or not all(isinstance(f, dict) and "name" in f for f in files):
        raise UserError(str(folder / MANIFEST), "is no manifest of shards: it lists no files", "build the folder again")
    more = manifest.get("ids")
    return [_checked(folder, f) for f in [*files, *([more] if isinstance(more, dict) and "name" in more else [])]]


def _checked(folder: Path, told: Mapping[str, Any]) -> Facts:
    path = folder / str(told["name"])
    state = "OK"
    try:
        size = path.stat().st_size
        if size != told.get("bytes"):
            state = f"BAD: has {size} bytes, the manifest says {told.get('bytes')}"
        elif sha256_file(path) != told.get("sha256"):
            state = "BAD: its checksum differs from the manifest"
    except FileNotFoundError:
        state = "BAD: is missing"
    except OSError as error:
        state = f"BAD: cannot be read ({error.strerror})"
    numbers = {name: told[name] if isinstance(told.get(name), int) else None for name in ("rows", "bytes")}
    return {"name": path.name, **numbers, "state": state}


def inspect(
    folder: Path,
    *,
    rows: int = 3,
    seed: int = 0,
    count_tokens: CountTokens | None = None,
    progress: Progress | None = None,
) -> Facts:
    """What is in one shard folder, as JSON values.

    Args:
        rows: how many rows to show, drawn with `seed`. count_tokens: the tokens of a text; lengths in tokens then too.

    Returns:
        folder, kind, rows, files (see `check_files`), good (whether all are); and where they are, by kind: sources,
        languages, lengths, per_row, scores, repeated, sample …

    Raises:
        UserError: not a shard folder, or of another version.
    """
    if not (folder / MANIFEST).is_file():
        raise what_it_is(folder)
    kind, files = _kind(folder / MANIFEST), check_files(folder)
    manifest = read_json(folder / MANIFEST)
    facts: Facts = {
        "folder": str(folder), "kind": kind, "rows": manifest.get("rows"), "files": files,
        "good": all(f["state"] == "OK" for f in files), "fingerprint": manifest.get("fingerprint"),
    }  # fmt: skip
    if not facts["good"]:
        return facts
    if kind == "vectors":
        from data_prep.embed.store import StoredVectors

        return facts | _vectors(StoredVectors(folder, verify=False), rows=rows, seed=seed)
    if kind not in KINDS:
        return facts
    if not isinstance(manifest.get("rows"), int) or "fingerprint" not in manifest:
        raise UserError(str(folder / MANIFEST), "lacks the rows or the fingerprint", "build the folder again")
    shards = Shards(folder, kind, verify=False)  # type: ignore[arg-type]
    chosen = set(random.Random(seed).sample(range(shards.rows), min(rows, shards.rows)))
    counter = _Counter(kind, count_tokens)
    progress = progress or Progress()
    progress.begin("read shards", shards.rows, "rows")
    try:
        for number, row in enumerate(shards):
            progress.advance(1)
            counter.add(row)
            if number in chosen:
                counter.sample.append({"row": number} | row)
    except (KeyError, TypeError, ValueError, OSError) as error:  # files that somebody else wrote under our names
        raise UserError(str(folder), f"holds rows that are no {kind} ({error!r})", "build the folder again") from error
    return facts | counter.facts()


class _Counter:
    """Counts the rows of one kind of shard."""

    def __init__(self, kind: str | None, count_tokens: CountTokens | None) -> None:
        self._kind, self._count_tokens = kind, count_tokens
        self._sources: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._lengths: dict[str, dict[str, Distribution]] = {}
        self._per_row: dict[str, Distribution] = {}
        self._scores: dict[str, Distribution] = {}
        self._keys: dict[str, array[int]] = {}
        self._with: Counter[str] = Counter()
        self.sample: list[Facts] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row."""
        self._sources[row["source"] or "(none)"] += 1
        if self._kind == "tokens":
            self._per("tokens", len(row["input_ids"]))
            self._per("documents", len(row["document_starts"]))
            return
        self._languages[row["language"] or "(none)"] += 1
        if self._kind == "documents":
            self._text("text", row["text"])
            self._key("texts", content_id(row["text"]))
            self._key("ids", content_id(row["id"]))
            self._with["part of a named document"] += row["document"] is not None
            return
        self._text("query", row["query"])
        self._key("queries", row["query_id"])
        for side in ("positives", "negatives"):
            for text in row[side] or ():
                self._text(side, text)
            self._per(side, len(row[side] or ()))
        for side in ("positive_scores", "negative_scores"):
            for score in row[side] or ():
                self._scores.setdefault(side, Distribution()).add(score)
        self._with["no negative"] += not row["negatives"]
        self._with["no positive"] += not row["positives"]
        self._with["known documents"] += row["query_document"] is not None

    def _text(self, name: str, text: str) -> None:
        lengths = self._lengths.setdefault(name, {})
        lengths.setdefault("characters", Distribution()).add(len(text))
        lengths.setdefault("words", Distribution()).add(len(text.split()))
        if self._count_tokens:
            lengths.setdefault("tokens", Distribution()).add(self._count_tokens(text))

    def _per(self, name: str, count: int) -> None:
        self._per_row.setdefault(name, Distribution()).add(count)

    def _key(self, name: str, ident: str) -> None:
        self._keys.setdefault(name, array("Q")).append(int(ident[:16], 16))

    def facts(self) -> Facts:
        """What was counted."""
        return {
            "sources": dict(self._sources.most_common()),
            "languages": dict(self._languages.most_common()),
            "lengths": {n: {unit: d.facts() for unit, d in kinds.items()} for n, kinds in self._lengths.items()},
            "per_row": {n: d.facts() for n, d in self._per_row.items()},
            "scores": {n: d.facts() for n, d in self._scores.items()},
            "repeated": {n: _repeated(keys) for n, keys in self._keys.items()},
            "rows_with": dict(self._with),
            "sample": self.sample,
        }


def _repeated(keys: Iterable[int]) -> int:
    """Rows whose key stood in a row before."""
    import numpy as np

    values = np.frombuffer(keys, np.uint64) if isinstance(keys, array) else np.array(list(keys), np.uint64)
    return len(values) - len(np.unique(values))


def _vectors(store: StoredVectors, *, rows: int, seed: int) -> Facts:
    """What is in a folder of vectors: its teacher, lengths of the vectors, and what is wrong with them."""
    import numpy as np

    norms, bad = Distribution(), 0
    for start in range(0, store.rows, _BLOCK):
        block = store.raw(start, start + _BLOCK).astype(np.float32)
        found = np.linalg.norm(block, axis=1)
        bad += int((~np.isfinite(found)).sum())
        for norm in found.tolist():
            norms.add(norm)
    ids = np.ascontiguousarray(store.ids).view("S16").ravel() if store.rows else np.empty(0, "S16")
    chosen = sorted(random.Random(seed).sample(range(store.rows), min(rows, store.rows)))
    return {
        "teacher": store.kind.name,
        "role": store.kind.role,
        "dimension": store.dimension,
        "normalised": store.normalised,
        "zero_rows": store.zero_rows,
        "not_finite_rows": bad,
        "lengths": {"vector": {"norm as stored": norms.facts()}},
        "repeated": {"ids": len(ids) - len(np.unique(ids))},
        "sample": [
            {
                "row": n,
                "id": bytes(store.ids[n]).hex(),
                "first": [round(float(v), 4) for v in store.raw(n, n + 1)[0][:6]],
            }
            for n in chosen
        ],
    }
