"""The language of a text: Malay, Indonesian, English, Chinese, Tamil, several of them mixed, or undetermined.

Scripts decide first (Han, Tamil, Latin). In Latin script every distinct word is judged once by lingua and the
judgements are added. On FLORES that tells Malay from Indonesian better than lingua's judgement of the whole text, it is
fast because words repeat, and the same words show code-switching, as in "meeting tadi cancel sebab boss tak datang".
Malay and Indonesian are one side of a mixture: they share most words.

The tag of a text depends on the text and the config alone.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args

from pydantic import Field

from data_prep.config import Section

if TYPE_CHECKING:
    from lingua import LanguageDetector

Tag = Literal["ms", "id", "en", "zh", "ta", "mixed", "und"]
TAGS: tuple[Tag, ...] = get_args(Tag)

_NAMES: dict[str, Tag] = {
    **dict.fromkeys(("ms", "msa", "may", "zsm", "zlm", "malay", "melayu"), "ms"),
    **dict.fromkeys(("id", "ind", "in", "indonesian", "indonesia"), "id"),
    **dict.fromkeys(("en", "eng", "english", "inggeris"), "en"),
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "chinese", "cina"), "zh"),
    **dict.fromkeys(("ta", "tam", "tamil"), "ta"),
    "mixed": "mixed",
}
# What people write in chats and what the dictionaries of lingua's training text hold little of. Only words that the
# other language hardly writes; each counts as much as `_MARK` units of log-odds.
_COLLOQUIAL_MALAY = """
tak taknak takde takda xde xda xtau xnak nak nk je jer jela ni nie tu tue kot kat mcm camtu camni macam korang dorang
depa hampa kitorang diorang awak akak makcik pakcik pulak plak sikit sgt seronok cakap ckp tgk tengok camne bkn sbb
teruk comel kejap esok cikgu encik tadi la lah kerana bahawa wang polis sahaja iaitu ialah boleh
"""
_COLLOQUIAL_INDONESIAN = """
nggak ngga gak enggak gk banget bgt aja udah udh gue gw elo dong sih kok deh kayak kyk bisa karena krn uang bahwa kapan
gimana kenapa gitu gini nih tuh emang cewek cowok
"""
_MALAY_MARKS, _INDONESIAN_MARKS = frozenset(_COLLOQUIAL_MALAY.split()), frozenset(_COLLOQUIAL_INDONESIAN.split())
_MARK = 4.0
_CLEAR = 1.0
"""Log-odds (natural) beyond which a word alone counts as English or as Malay when shares are taken. On words that stand
on one side of FLORES only, 80 % of the English and 95 % of the Malay ones pass, and 0.3 % and 1.5 % pass wrongly."""
_FLOOR = 1e-9

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_KANA = re.compile("[\u3040-\u30ff]")
_TAMIL = re.compile("[\u0b80-\u0bff]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+(?:['’\-][A-Za-z\u00c0-\u024f\u1e00-\u1eff]+)*")
_PLACEHOLDER = re.compile(r"<[A-Z]{2,5}>")
_STRETCHED = re.compile(r"(.)\1{2,}")
_HAN_WEIGHT = 3
"""Letters that a Han character counts for: Malay writes about three times as many for the same meaning."""
_WINDOW = 600
"""Characters of the start, middle and end that are looked at in a longer text."""
_CACHE_WORDS = 200_000
_LONGEST_WORD = 40


class LanguageConfig(Section):
    """`[corpus.language]`: how texts are tagged, and which are kept."""

    trust_labels: bool = True
    """Keep a label that the input gives and that names one of the tags; false judges every text anew. Who made a corpus
    usually knows its language; crawled corpora were often labelled by a weak classifier."""
    malay_prior: Annotated[float, Field(ge=-20, le=20)] = 0.5
    """Added to the log-odds of Malay against Indonesian. 0 takes both to be as frequent; short Malaysian texts are
    taken for Indonesian more often than the reverse, so a Malaysian corpus gains from 0.5 to 2."""
    mixed_share: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Both languages need this share of the letters for the tag `mixed`. Higher finds fewer: 0.2 calls at most 0.5 % of
    pure FLORES sentences mixed and finds 5 of 6 that begin in Malay and end in English, or the reverse."""
    keep: list[Tag] = Field(default_factory=list)
    """Keep only documents with one of these tags; empty keeps all."""


def normal_label(label: str) -> Tag:
    """The tag that an input's label names (`zsm_Latn`, `en-GB`, `Malay` …), `und` where it names none."""
    return _NAMES.get(re.split(r"[-_ ]", label.strip().lower(), maxsplit=1)[0], "und")


@functools.cache
def _detector() -> LanguageDetector:
    from lingua import Language, LanguageDetectorBuilder

    languages = (Language.MALAY, Language.INDONESIAN, Language.ENGLISH)
    return LanguageDetectorBuilder.from_languages(*languages).with_preloaded_language_models().build()


class _Judged(NamedTuple):
    """What a word tells.

    Attributes:
        malay, indonesian: natural logs of the shares that lingua gives them.
        lead: log-odds of English against the likelier of the two.
        side: whether the word is clearly English (1), clearly Malay or Indonesian (-1) or neither (0).
        small: whether it begins with a small letter.
    """

    malay: float
    indonesian: float
    lead: float
    side: int
    small: bool


_judged: dict[str, _Judged] = {}


def _judge(given: str) -> _Judged:
    """Judge a word as it stands in a text, whatever its case and however it is stretched ("bestttt")."""
    word = _STRETCHED.sub(r"\1", given.lower())[:_LONGEST_WORD]
    shares = {v.language.name: v.value for v in _detector().compute_language_confidence_values(word)}
    malay, indonesian, english = (math.log(shares[n] + _FLOOR) for n in ("MALAY", "INDONESIAN", "ENGLISH"))
    malay += _MARK * (word in _MALAY_MARKS)
    indonesian += _MARK * (word in _INDONESIAN_MARKS)
    lead = english - max(malay, indonesian)
    found = _Judged(malay, indonesian, lead, (lead > _CLEAR) - (lead < -_CLEAR), given[0].islower())
    if len(_judged) >= _CACHE_WORDS:
        _judged.clear()
    _judged[given] = found
    return found


class LanguageTagger:
    """Tags texts; make one and use it for many (lingua's models load once a process, in about half a second)."""

    def __init__(self, config: LanguageConfig | None = None) -> None:
        self._config = config or LanguageConfig()

    def tag(self, text: str) -> Tag:
        """The language of a text; `und` for a text without words, in another script, or full of foreign letters."""
        text = _PLACEHOLDER.sub(" ", _excerpt(text))
        words = _WORD.findall(text)
        latin = sum(map(len, words))
        if text.isascii():
            return self._latin(words) if words else "und"
        han, tamil = len(_HAN.findall(text)), len(_TAMIL.findall(text))
        if len(_KANA.findall(text)) > 0.2 * han:  # Japanese
            han = 0
        other = max(0, len(_LETTER.findall(text)) - latin - han - tamil)
        weights: dict[Tag | None, int] = {"zh": _HAN_WEIGHT * han, "ta": tamil, None: latin, "und": other}
        total = sum(weights.values())
        if not total:
            return "und"
        if len([w for name, w in weights.items() if name != "und" and w >= self._config.mixed_share * total]) > 1:
            return "mixed"
        largest = max(weights, key=lambda name: weights[name])
        if largest is not None:
            return largest
        foreign = sum(not c.isascii() for w in words for c in w)
        return "und" if foreign > 0.1 * latin else self._latin(words)

    def label(self, given: str, text: str) -> Tag:
        """The input's label where labels are trusted and it names a language, else the tag of the text."""
        named = normal_label(given) if self._config.trust_labels and given else "und"
        return self.tag(text) if named == "und" else named

    def _latin(self, words: list[str]) -> Tag:
        """`ms`, `id`, `en` or `mixed` for the words of a text in Latin script."""
        # A capital inside a sentence marks a name, which shows no second language; a text in capitals marks nothing.
        judged = [(_judged.get(word) or _judge(word), word, times) for word, times in Counter(words).items()]
        shouted = 4 * sum([times for told, _, times in judged if told.small]) < len(words)
        malay = indonesian = lead = 0.0
        letters, clear = [0, 0, 0], [0, 0, 0]  # neither, English, Malay or Indonesian
        for told, word, times in judged:
            malay += told.malay
            indonesian += told.indonesian
            if told.small or shouted or word == words[0]:
                lead += told.lead
                letters[told.side] += times * len(word)
                clear[told.side] += 1
        # two words each: one borrowed word, or one name, is no second language
        if min(clear[1:]) > 1 and min(letters[1:]) >= self._config.mixed_share * sum(letters[1:]):
            return "mixed"
        if lead > 0:
            return "en"
        return "ms" if malay + self._config.malay_prior >= indonesian else "id"


def _excerpt(text: str) -> str:
    """A text of at most three windows; a longer one is cut to its start, middle and end."""
    if len(text) <= 3 * _WINDOW:
        return text
    middle = (len(text) - _WINDOW) // 2
    return " ".join((text[:_WINDOW], text[middle : middle + _WINDOW], text[-_WINDOW:]))


@functools.cache
def _default() -> LanguageTagger:
    return LanguageTagger()


def tag(text: str) -> Tag:
    """The language of a text under the default config (see `LanguageTagger.tag`)."""
    return _default().tag(text)
