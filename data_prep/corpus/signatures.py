"""What near-duplicate search knows of a text: its key and its MinHash signature, in flat files beside the texts.

A folder holds `keys.bin` (16 bytes a row), `signatures.bin` (uint32, `permutations` a row) and `signatures.json`, which
is written last and carries rows, settings and checksums. Row i is the i-th text that was added. Signatures are made by
rensa from hashes of word shingles; the share of equal positions of two signatures estimates the Jaccard similarity of
their shingle sets. A text without words has no shingles; its signature is all ones and is never compared.
"""

from __future__ import annotations

import zlib
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_prep.config import Section
from data_prep.corpus.keys import text_key
from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SEED = 1
_BLOCK_TEXTS, _BLOCK_SHINGLES = 4096, 1 << 20
NO_WORDS = 0xFFFFFFFF


class NearConfig(Section):
    """`[corpus.near]`: which texts count as copies of an earlier one."""

    enabled: bool = True
    """Remove near copies. On: reposts and agency news are most of what a crawl repeats; off removes exact ones only."""
    threshold: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    """Jaccard similarity of word shingles from which a text is a near copy. At 0.8 and three words a shingle, a
    changed word makes another text of one of fewer than 29 words; lower it to remove rewritten ones too."""
    shingle_words: Annotated[int, Field(ge=1, le=13)] = 3
    """Words per shingle. Three keep word order and still compare texts of ten words; five suit long pages only."""
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128
    """Length of a signature, 4 bytes each on disk; the standard error of an estimate of 0.8 is 0.035 at 128."""
    recall: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.99
    """Least share of pairs just at the threshold that are compared; decides the bands. Higher compares more pairs."""
    memory_gb: Annotated[float, Field(gt=0)] = 0.5
    """Memory for sorting, in GB; a larger corpus is sorted in more parts on disk, with the same result and as fast."""

    def bands(self) -> tuple[int, int]:
        """(bands, rows of a band): the longest bands that compare `recall` of the pairs at the threshold."""
        for rows in range(self.permutations, 0, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= self.recall:
                return bands, rows
        return self.permutations, 1


class SignatureWriter:
    """Writes keys and signatures of texts, in the order in which they are added; use it as a context manager.

    On a clean exit `signatures.json` is written; on an exception it is not, and the folder stays invalid.
    """

    def __init__(self, folder: Path, config: NearConfig) -> None:
        self.folder, self.config, self.rows = folder, config, 0
        self._keys: list[bytes] = []
        self._shingles: list[NDArray[np.uint64]] = []
        self._held = 0
        self._sums = {"keys.bin": 0, "signatures.bin": 0}
        self._streams: dict[str, IO[bytes]] = {}

    def __enter__(self) -> SignatureWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "signatures.json").unlink(missing_ok=True)
        for name in self._sums:
            with disk_errors(self.folder / name):
                self._streams[name] = (self.folder / name).open("wb")
        return self

    def add(self, text: str) -> None:
        """Add one text."""
        shingles = shingle_hashes(text, self.config.shingle_words) if self.config.enabled else _no_shingles()
        self._keys.append(bytes.fromhex(text_key(text)))
        self._shingles.append(shingles)
        self._held += len(shingles)
        self.rows += 1
        if len(self._keys) >= _BLOCK_TEXTS or self._held >= _BLOCK_SHINGLES:
            self._flush()

    def _flush(self) -> None:
        if not self._keys:
            return
        self._write("keys.bin", b"".join(self._keys))
        if self.config.enabled:
            self._write("signatures.bin", signatures(self._shingles, self.config.permutations).tobytes())
        self._keys, self._shingles, self._held = [], [], 0

    def _write(self, name: str, data: bytes) -> None:
        with disk_errors(self.folder / name):
            self._streams[name].write(data)
        self._sums[name] = zlib.crc32(data, self._sums[name])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            for name, stream in self._streams.items():
                with disk_errors(self.folder / name):
                    stream.close()
        if kind is None:
            told = {"rows": self.rows, "settings": settings(self.config), "crc32": self._sums}
            write_json(self.folder / "signatures.json", told)


class Signatures:
    """One folder of signatures, checked.

    `keys` and `values` are mapped anew at each use, so that pages which were read do not pile up in the process.

    Raises:
        UserError: files are missing, cut off or changed, or were made with other settings.
    """

    def __init__(self, folder: Path, config: NearConfig) -> None:
        rebuild = "run the same command again with --force, or delete the run's corpus scratch folder"
        self.folder = folder
        told = read_json(folder / "signatures.json")
        if told.get("settings") != settings(config):
            raise UserError(
                str(folder / "signatures.json"),
                f"was made with {told.get('settings')}, this run asks for {settings(config)}",
                rebuild,
            )
        self.rows: int = told["rows"]
        width = config.permutations if config.enabled else 0
        for name, row_bytes in (("keys.bin", 16), ("signatures.bin", 4 * width)):
            path, found = folder / name, 0
            wanted = self.rows * row_bytes
            size = path.stat().st_size if path.exists() else -1
            if size != wanted:
                raise UserError(str(path), f"has {max(size, 0)} bytes, {wanted} are expected", rebuild)
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    found = zlib.crc32(block, found)
            if found != told["crc32"][name]:
                raise UserError(str(path), "its checksum differs: the file is damaged or was changed", rebuild)
        self._width = width

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The text keys, uint64 [rows, 2]."""
        import numpy as np

        return _mapped(self.folder / "keys.bin", np.uint64, (self.rows, 2))

    @property
    def values(self) -> NDArray[np.uint32]:
        """The signatures, uint32 [rows, permutations]; no columns where near copies are not sought."""
        import numpy as np

        return _mapped(self.folder / "signatures.bin", np.uint32, (self.rows, self._width))


def _mapped(path: Path, dtype: Any, shape: tuple[int, int]) -> NDArray[Any]:
    import numpy as np

    return np.memmap(path, dtype, "r", shape=shape) if shape[0] and shape[1] else np.empty(shape, dtype)


def settings(config: NearConfig) -> dict[str, Any]:
    """What the bytes of a signature depend on."""
    if not config.enabled:
        return {"permutations": 0}
    return {
        "permutations": config.permutations,
        "shingle_words": config.shingle_words,
        "rensa": version("rensa"),
    }


def _no_shingles() -> NDArray[np.uint64]:
    import numpy as np

    return np.empty(0, np.uint64)


def shingle_hashes(text: str, size: int) -> NDArray[np.uint64]:
    """Hashes of the runs of `size` words of a text (uint64); a shorter text is one run, a text without words none."""
    from data_prep.corpus.word_kernels import grams
    from data_prep.corpus.words import words_of

    hashes = words_of(text).hashes
    return grams(hashes, min(size, len(hashes))) if len(hashes) else hashes


def signatures(shingles: list[NDArray[np.uint64]], permutations: int) -> NDArray[np.uint32]:
    """MinHash signatures of sets of shingle hashes: uint32 [sets, permutations]."""
    import numpy as np
    from rensa import RMinHash

    offsets = np.zeros(len(shingles) + 1, np.uint64)
    np.cumsum([len(s) for s in shingles], out=offsets[1:])
    flat = np.concatenate(shingles)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, permutations, _SEED)
    values = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint32, len(shingles) * permutations)
    return values.reshape(len(shingles), permutations)
