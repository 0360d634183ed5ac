"""A text as a row of word hashes: what near-duplicate search and decontamination compare.

A word is a run of letters, marks and digits of the text in NFKC and lower case; a Chinese character or a kana is a
word of its own, as those scripts have no spaces. Everything else separates, and invisible format characters are passed
over, so case, punctuation, line breaks and full-width forms do not count. Scripts without spaces and without
ideographs (Thai, Khmer …) are cut at their spaces only. Hashes depend on the words alone, never on the process.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_IDEOGRAPHS = ((0x3040, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x323B0))


class Words(NamedTuple):
    """The words of one text.

    Attributes:
        hashes: uint64 [words].
        starts, ends: int64 [words], where each word lies in `normal`.
        normal: the text in NFKC and lower case.
        letters: hash of the text's letters and digits alone, so that neither spacing nor punctuation counts; 0 where
            the text has none.
    """

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    normal: str
    letters: int

    def shown(self, start: int, stop: int) -> str:
        """The stretch of the normalised text from word `start` to before word `stop`, on one line."""
        return " ".join(self.normal[self.starts[start] : self.ends[stop - 1]].split()) if stop > start else ""


@functools.cache
def character_classes() -> NDArray[np.uint8]:
    """For every code point: 0 separates, 1 is part of a word, 2 is a word, 3 is passed over (uint8 [0x110000])."""
    import numpy as np

    classes = np.zeros(0x110000, np.uint8)
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category[0] in "LMN":
            classes[code] = 1
        elif category == "Cf":
            classes[code] = 3
    for low, high in _IDEOGRAPHS:
        classes[low:high][classes[low:high] == 1] = 2
    return classes


def normalised(text: str) -> str:
    """NFKC and lower case."""
    return unicodedata.normalize("NFKC", text).lower()


def words_of(text: str) -> Words:
    """The words of a text; a lone surrogate separates words."""
    import numpy as np

    from data_prep.corpus.word_kernels import cut_words

    normal = normalised(text)
    codes = np.frombuffer(normal.encode("utf-32-le", "surrogatepass"), np.uint32)
    hashes, starts, ends, letters = cut_words(codes, character_classes())
    return Words(hashes, starts, ends, normal, int(letters))
