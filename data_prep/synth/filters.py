"""What a question must be to become a pair; everything but the round trip, which needs all chunks.

Invariant: a verdict depends on the question, its passages and the config alone, not on what came before; copies are
told by keys, which the caller remembers.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from data_prep.config import Section
from data_prep.files import content_id
from data_prep.synth.sentences import sentences

if TYPE_CHECKING:
    from data_prep.corpus.decontaminate import DecontaminateConfig, Gate
    from data_prep.corpus.language import LanguageTagger
    from data_prep.corpus.private import PrivateConfig

REFUSALS = (
    "refused_malformed",
    "refused_meta",
    "refused_language",
    "refused_copied",
    "refused_evaluation_overlap",
    "refused_round_trip",
    "refused_repeated",
)
"""Filters of written questions, in the order in which they are asked; the first that refuses counts."""

# Talk about the task instead of a question: refusals, apologies, and questions about "the text above", which nobody who
# searches has before them. Compared without case.
META = (
    r"sebagai (?:sebuah )?(?:model|pembantu) (?:ai|bahasa)",
    r"as an? (?:ai|language model|artificial intelligence)",
    r"\b(?:maaf|sorry|apologi[sz]e)\b.{0,40}\b(?:tidak dapat|tak dapat|tidak boleh|cannot|can't|unable)\b",
    r"\b(?:i cannot|i can't|i'm unable|i am unable|saya tidak (?:dapat|boleh) (?:menjawab|membantu|menjana))\b",
    r"\b(?:berdasarkan|menurut|merujuk|mengikut|dalam|daripada|di dalam)(?: kepada| pada)? "
    r"(?:teks|petikan|artikel|dokumen|rencana|perenggan|maklumat|konteks|bacaan|berita)"
    r"(?: (?:yang )?(?:di ?atas|di ?bawah|ini|itu|tersebut|berikut|diberikan|diberi))+",
    r"\b(?:according to|based on|in|from|per|as stated in|mentioned in|described in|given) (?:the|this) "
    r"(?:above |given |provided |following )?"
    r"(?:text|passage|article|document|excerpt|context|paragraph|extract)\b",
    r"\b(?:the|this) (?:passage|excerpt|text|article|author|document)\b.{0,30}\b"
    r"(?:mention|say|state|describe|discuss|refer|suggest|provide)",
    r"\b(?:disebut|dinyatakan|dibincangkan|diterangkan|diceritakan)(?:kan)? (?:di )?dalam "
    r"(?:teks|petikan|artikel|dokumen|perenggan|rencana)",
    r"^(?:here (?:is|are)|berikut (?:ialah|adalah|merupakan)|tentu(?:lah)?[,!]|sure[,!]|certainly[,!]|baik(?:lah)?,)",
    r"根据(?:上文|以上|文章|本文)",
)  # fmt: skip

_LABEL = re.compile(
    r"^\s*(?:[-*•]|\d{1,2}[.)]|soalan\s*\d*\s*:|question\s*\d*\s*:|q\d*\s*:|query\s*:)\s*", re.IGNORECASE
)
_REMAINS = re.compile(r"[{}\[\]<>`|\\]|\*\*|https?://|\"\s*:|\.\.\.$|…$")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ASKING = """
apa apakah siapa siapakah bila bilakah kapan berapa berapakah mengapa mengapakah kenapa bagaimana bagaimanakah mana
manakah adakah apa-apa di ke yang ialah adalah itu ini the a an of is are was were what who when where why how which
do does did tu ni ek eh ke kah ya
"""
_PARTICLES = frozenset(_ASKING.split())
# Malay and Indonesian share most words of a short question, and a mixture is how people write.
_NEAR = {"ms": {"ms", "id"}, "id": {"ms", "id"}}
_TAG_WORDS = 4
_NAMES = re.compile(r"(?<=\s)[A-Z][\w'’-]*|[\"“][^\"”]*[\"”]")


class FiltersConfig(Section):
    """`[synth.filters]`: which written questions are kept.

    Questions that the text itself holds (question lines, titles, headings, clozes) are not written and pass these.
    """

    meta: bool = True
    """Refuse talk about the task: "as an AI model", "berdasarkan petikan di atas", "according to the passage"."""
    more_meta: list[str] = Field(default=[])
    """Further regular expressions to refuse, compared without case."""
    language: bool = True
    """Refuse a question that is not in the language asked for. Malay and Indonesian pass for each other, mixed for all;
    colloquial questions and those of fewer than 4 words besides names are not judged."""
    max_copied_words: Annotated[int, Field(ge=2)] = 12
    """Refuse a question that repeats more words of its passage in a row: it is the text with a question mark."""
    max_copied_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Refuse a model's question of 6 words or more when a larger share of them stands in one sentence of the passage.
    Keywords are meant to be the passage's words and pass."""
    repeated: bool = True
    """Refuse a question that was kept before, also with other words of asking, order, case or marks: as a pair it would
    have one answer where it has several."""
    round_trip: Annotated[int, Field(ge=1)] | None = 10
    """Refuse a question whose chunk the teacher does not find among its so many nearest chunks of the whole run; none
    asks no teacher. Cross-lingual questions are only tried with a teacher that is not TF-IDF."""
    samples: Annotated[int, Field(ge=0)] = 5
    """Refused questions of each filter that the report shows."""


def words_of(text: str) -> list[str]:
    """Lower-case words in NFKC, hyphens and apostrophes inside."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def tidy(question: str) -> str:
    """The question on one line, without list marks, labels or quotes around it."""
    line = " ".join(_LABEL.sub("", question).split())
    if len(line) > 2 and line[0] in "\"“'‘" and line[-1] in "\"”'’" and line[0] not in line[1:-1]:
        line = line[1:-1].strip()
    return line


def question_key(question: str) -> str:
    """32 hex digits: equal for questions of the same words but for order, case, marks and words of asking."""
    kept = sorted(word.removesuffix("kah") for word in words_of(question) if word not in _PARTICLES)
    return content_id(" ".join(kept or words_of(question)))


def copied_run(question: str, passage: str) -> int:
    """Length in words of the longest run of the question that stands in the passage."""
    asked, held = words_of(question), words_of(passage)
    places: dict[str, list[int]] = {}
    for place, word in enumerate(held):
        places.setdefault(word, []).append(place)
    longest = 0
    lengths: dict[int, int] = {}  # of the run that ends at a place of the passage
    for word in asked:
        lengths = {place: lengths.get(place - 1, 0) + 1 for place in places.get(word, ())}
        longest = max([longest, *lengths.values()])
    return longest


def copied_share(question: str, passage: str) -> float:
    """Largest share of the question's words (0 to 1) that stands in one sentence of the passage."""
    asked = words_of(question)
    if not asked:
        return 0.0
    best = 0
    for sentence in sentences(passage):
        held = set(words_of(sentence))
        best = max(best, sum(word in held for word in asked))
    return best / len(asked)


def _gate(sets: Sequence[Path], decontaminate: DecontaminateConfig | None, private: PrivateConfig | None) -> Gate:
    """The gate that a corpus of these settings is cleaned and checked with; one a process."""
    from data_prep.corpus.config import CorpusConfig
    from data_prep.corpus.part import gate_for

    given = {name: table for name, table in (("decontaminate", decontaminate), ("private", private)) if table}
    # no file is read: the gate looks at these two tables alone
    return gate_for([str(path) for path in sets], CorpusConfig(files=["-"], **given))  # type: ignore[arg-type]


class TextFilters:
    """The filters of one run.

    Args:
        evaluation_sets: folders whose questions and documents no pair may hold.
        by_model: whether a language model writes the questions.
        decontaminate, private: of the corpus: what counts as an overlap, and how its texts were scrubbed (evaluation
            texts are also sought in that form, as the last look before training seeks them); None: the defaults.

    Raises:
        UserError: `more_meta` holds what is no regular expression, an evaluation set cannot be read.
    """

    def __init__(
        self,
        config: FiltersConfig,
        evaluation_sets: Sequence[Path] = (),
        *,
        by_model: bool,
        decontaminate: DecontaminateConfig | None = None,
        private: PrivateConfig | None = None,
    ) -> None:
        from data_prep.errors import UserError

        self._config, self._by_model = config, by_model
        patterns = [*META, *config.more_meta] if config.meta else config.more_meta
        try:
            self._meta = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
        except re.error as error:
            raise UserError(
                f"synth.filters.more_meta = {config.more_meta}", f"holds no regular expression ({error})", "mend it"
            ) from error
        self._tagger: LanguageTagger | None = None
        self._near: Callable[[str], bool] = lambda text: False
        if config.language:
            from data_prep.corpus.language import LanguageTagger

            self._tagger = LanguageTagger()
        if evaluation_sets:
            gate = _gate(evaluation_sets, decontaminate, private)
            # Several questions have one passage.
            self._near = functools.lru_cache(maxsize=1024)(lambda text: gate.find(text) is not None)

    def refuse(self, question: str, passages: Sequence[str], *, style: str, language: str) -> str | None:
        """The name (of `REFUSALS`) of the first filter that refuses a written question, or None.

        Args:
            question: as `tidy` leaves it.
            passages: the texts that answer it.
            style: of `STYLES`.
            language: the tag that the question should have.
        """
        config = self._config
        if not question or _REMAINS.search(question) or not any(char.isalpha() for char in question):
            return "refused_malformed"
        if any(pattern.search(question) for pattern in self._meta):
            return "refused_meta"
        if style != "colloquial" and not self._language_fits(question, language):
            return "refused_language"
        if any(copied_run(question, passage) > config.max_copied_words for passage in passages):
            return "refused_copied"
        judged = self._by_model and style != "keywords" and len(words_of(question)) >= 6
        if judged and any(copied_share(question, passage) > config.max_copied_share for passage in passages):
            return "refused_copied"
        if self.overlaps((question, *passages)):
            return "refused_evaluation_overlap"
        return None

    def overlaps(self, texts: Sequence[str]) -> bool:
        """Whether one of the texts is too near to an evaluation text."""
        return any(self._near(text) for text in texts)

    def _language_fits(self, question: str, language: str) -> bool:
        if self._tagger is None or language not in ("ms", "id", "en", "zh", "ta"):
            return True
        # Names belong to no language: "What is Kota Tinggi?" is English.
        plain = _NAMES.sub(" ", question)
        latin = all(char < "\u0b80" for char in question)  # Tamil and Chinese are told by a single letter
        if len(words_of(plain)) < _TAG_WORDS and latin and language in ("ms", "id", "en"):
            return True
        found = self._tagger.tag(plain)
        return found in ("mixed", "und") or found in _NEAR.get(language, {language})
