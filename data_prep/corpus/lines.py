"""Lines of a range of a text file, one at a time, in bounded memory; what is wrong with one is named or counted.

A line longer than `max_line_mb` is measured block by block and never kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import Piece, first_line
from data_prep.errors import UserError
from data_prep.files import decoded, open_bytes, read_errors

_SAMPLES = 10
_BLOCK = 1 << 20


class Trouble:
    """What could not be read: raises it, or counts it and keeps samples, as the config says.

    Attributes:
        counts: `bad_lines` and `oversize`. samples: the first of each, in words.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self._refuse = {"bad_lines": config.on_bad_line == "refuse", "oversize": config.oversize == "refuse"}
        self.counts: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = {}

    def meet(self, kind: str, error: UserError) -> None:
        """A line that cannot be used. Raises the error where such lines are refused."""
        if self._refuse[kind]:
            raise error
        self.counts[kind] += 1
        kept = self.samples.setdefault(kind, [])
        if len(kept) < _SAMPLES:
            kept.append(f"{error.value}: {error.rule}")


class Lines:
    """The lines of a range of a text file, numbered inside it from 1, decoded; bad and overlong ones met as trouble."""

    def __init__(self, path: Path, piece: Piece, config: CorpusConfig, trouble: Trouble) -> None:
        self.path, self._start, self._stop = path, piece["start"] or 0, piece["stop"]
        self.limit, self._given, self._trouble = int(config.max_line_mb * 1e6), config.max_line_mb, trouble
        self.read = 0

    def number(self, inside: int) -> int:
        """The number in the file of a line of the range."""
        return first_line(self.path, self._start) + inside

    def place(self, inside: int) -> str:
        """File and line, for a message."""
        return f"{self.path}, line {self.number(inside)}"

    def too_long(self, inside: int, size: int, what: str) -> None:
        """Meet a line (or paragraph, file) of `size` bytes."""
        self._trouble.meet(
            "oversize",
            UserError(
                self.place(inside),
                f"{what} of {size / 1e6:.1f} MB, over corpus.max_line_mb = {self._given:g}",
                'raise it, or pass such text over with corpus.oversize = "skip"',
            ),
        )

    def __iter__(self) -> Iterator[tuple[int, str]]:
        left = self._stop - self._start if self._stop is not None else None
        with read_errors(self.path, lambda: self.number(self.read)), open_bytes(self.path) as stream:
            if self._start:
                stream.seek(self._start)
            while left is None or left > 0:
                raw = stream.readline(self.limit + 1)
                if not raw:
                    break
                self.read += 1
                size = len(raw)
                if size > self.limit and not raw.endswith(b"\n"):
                    while rest := stream.readline(_BLOCK):
                        size += len(rest)
                        if rest.endswith(b"\n"):
                            break
                    self.too_long(self.read, size, "is a line")
                elif (text := self._decoded(raw)) is not None:
                    yield self.read, text
                left = None if left is None else left - size

    def _decoded(self, raw: bytes) -> str | None:
        try:
            text = decoded(raw, self.path, 1 if self.read == 1 and not self._start else 2)
        except UserError as error:
            self._trouble.meet("bad_lines", UserError(self.place(self.read), error.rule, error.fix))
            return None
        if "\0" in text:
            rule = f"holds a NUL byte at column {raw.index(0) + 1}: binary data, or UTF-16"
            fix = 'convert it (iconv -f UTF-16 -t UTF-8), or pass such lines over with corpus.on_bad_line = "skip"'
            self._trouble.meet("bad_lines", UserError(self.place(self.read), rule, fix))
            return None
        return text
