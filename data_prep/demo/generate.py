"""The demo corpus: Malaysian text that the project writes itself, with questions whose answers are known.

Invariants: the same config and seed give the same bytes; no evaluation fact occurs in `corpora/` in any wording; no
evaluation sentence is built like a training sentence. Everything is fiction about real-looking matters: it
shows that the machinery works and says nothing about a model's quality on real Malaysian text.

Layout of a document's text, on which pair synthesis relies: the first line is the title; a line that starts with
`Soalan:`, `Tanya:`, `Q:` or `Question:` asks something that the lines below it answer.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import write_atomically
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.demo.facts import Fact
    from data_prep.demo.lexicon import Lexicon, Register
    from data_prep.demo.text import Voice, Writer

QUESTION_MARKS: dict[str, tuple[str, ...]] = {
    "formal": ("Soalan:",),
    "colloquial": ("Tanya:",),
    "mixed": ("Tanya:", "Q:"),
    "english": ("Question:", "Q:"),
}
"""Voice → the words that may open its question line."""


class GenerateConfig(Section):
    """The demo corpus that rumpun writes itself."""

    kind: Literal["demo"] = "demo"
    """Which generator; there is one."""
    documents: Annotated[int, Field(ge=100, le=200_000)] = 6000
    """Training documents. Each takes about 0.1 ms to write and holds about 60 words; 6,000 teach every phrase often."""
    evaluation_documents: Annotated[int, Field(ge=100, le=50_000)] = 1600
    """Documents that the evaluation searches: answers, near misses and others. More make it harder."""
    evaluation_queries: Annotated[int, Field(ge=20, le=20_000)] = 600
    """Questions; 600 give a 95 % interval of about ±0.035. Each brings its answer and a near miss, so at most half of
    `evaluation_documents`."""
    translation_queries: Annotated[int, Field(ge=20, le=20_000)] = 400
    """English passages whose Malay telling is looked for among the Malay documents; at most a third of
    `evaluation_documents`, of which about 60 % are Malay."""


KINDS = ("formal", "colloquial", "english", "forum", "bilingual")
_KIND_SHARES = (0.1, 0.07, 0.08, 0.6, 0.15)
_TWICE = 0.25
"""Share of training facts that are told in two documents: what mining can find."""
_FILLED = 0.3
"""Share of bodies with one sentence that says nothing about the fact."""
_RETOLD = 0.15
"""Share of questions whose answer is in the question's own register: a paraphrase and no translation."""


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Gzip'd JSON lines without a time stamp, so that equal rows give equal bytes."""
    data = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(data, compresslevel=6, mtime=0))


def _other(voice: Voice, rng: np.random.Generator) -> Register:
    """A register that is not the speaker's own; who mixes speaks colloquially."""
    spoken = "colloquial" if voice == "mixed" else voice
    registers: tuple[Register, ...] = ("formal", "colloquial", "english")
    others = [register for register in registers if register != spoken]
    return others[int(rng.integers(len(others)))]


def _training_document(writer: Writer, fact: Fact, rng: np.random.Generator) -> tuple[str, str, str]:
    """One training document: (kind, language of most of its body, text)."""
    kind = KINDS[int(rng.choice(len(KINDS), p=_KIND_SHARES))]
    if kind == "bilingual":
        orders: tuple[tuple[Register, Register], ...] = (
            ("formal", "english"),
            ("english", "formal"),
            ("formal", "colloquial"),
        )
        first, second = orders[int(rng.integers(len(orders)))]
        parts = [writer.say("title", fact, first)]
        parts += [writer.body(fact, register, fillers=0) for register in (first, second)]
        return kind, "en" if first == "english" else "ms", "\n".join(parts)
    asker, answer = _speakers(kind, rng)
    lines = [writer.say("title", fact, asker)]
    if kind == "forum" or rng.random() < 0.4:
        marks = QUESTION_MARKS[asker]
        lines.append(f"{marks[int(rng.integers(len(marks)))]} {writer.say('question', fact, asker)}")
    lines.append(writer.body(fact, answer, fillers=int(rng.random() < _FILLED)))
    return kind, "en" if answer == "english" else "ms", "\n".join(lines)


def _speakers(kind: str, rng: np.random.Generator) -> tuple[Voice, Voice]:
    """Who writes the title and the question, and who answers; in a forum they differ."""
    if kind == "formal":
        return "formal", "formal"
    if kind == "english":
        return "english", "english"
    if kind == "colloquial":
        return ("mixed" if rng.random() < 0.3 else "colloquial"), "colloquial"
    askers: tuple[Voice, ...] = ("formal", "colloquial", "english", "mixed")
    asker = askers[int(rng.choice(len(askers), p=(0.2, 0.25, 0.3, 0.25)))]
    return asker, _other(asker, rng)


def _training_rows(
    lexicon: Lexicon, pairs: list[tuple[int, int, int]], count: int, rng: np.random.Generator
) -> tuple[dict[str, list[dict[str, str]]], list[list[str]]]:
    """Training documents by kind, as rows of `corpora/`; and the texts of every fact that several of them tell."""
    from data_prep.demo.facts import draw_fact
    from data_prep.demo.text import Writer

    writer = Writer(lexicon, "train", rng)
    rows: dict[str, list[dict[str, str]]] = {kind: [] for kind in KINDS}
    seen: set[str] = set()
    told: dict[Fact, list[str]] = {}
    while len(seen) < count:
        fact = draw_fact(lexicon, pairs, rng)
        for _ in range(1 + int(rng.random() < _TWICE)):
            kind, language, text = _training_document(writer, fact, rng)
            if text in seen or len(seen) == count:
                continue
            ident = f"demo-{kind}-{len(rows[kind]):06d}"
            rows[kind].append({"id": ident, "text": text, "source": f"demo_{kind}", "lang": language})
            seen.add(text)
            told.setdefault(fact, []).append(text)
    return rows, [texts for texts in told.values() if len(texts) > 1]


def _relevant(facts: NDArray[np.int64], fact: Fact, asked: tuple[str, ...]) -> list[int]:
    """Rows of `facts` (topic, then the slots) that have the topic and, in every asked slot, the concept of `fact`."""
    import numpy as np

    from data_prep.demo.facts import SLOTS

    columns = [0, *(1 + SLOTS.index(slot) for slot in asked)]
    wanted = np.array([fact.topic, *(fact[slot] for slot in asked)])
    return [int(i) for i in np.flatnonzero((facts[:, columns] == wanted).all(axis=1))]


class _Examiner:
    """Builds the evaluation: one document a fact, and questions about some of them."""

    def __init__(self, lexicon: Lexicon, pairs: list[tuple[int, int, int]], rng: np.random.Generator) -> None:
        from data_prep.demo.text import Writer

        self._lexicon, self._pairs, self._rng = lexicon, pairs, rng
        self._writer = Writer(lexicon, "eval", rng)
        self._seen: set[Fact] = set()
        self.facts: list[Fact] = []
        self.voices: list[Voice] = []

    def add(self, fact: Fact, voice: Voice) -> None:
        """Add a fact to the corpus unless it is there."""
        if fact not in self._seen:
            self._seen.add(fact)
            self.facts.append(fact)
            self.voices.append(voice)

    def voice(self) -> Voice:
        """Who asks."""
        from data_prep.demo.text import VOICES

        return VOICES[int(self._rng.integers(len(VOICES)))]

    def question(self) -> tuple[Fact, Voice, str]:
        """A held-out fact, who asks about it, and the question; adds the fact and a near miss to the corpus."""
        from data_prep.demo.facts import draw_fact, near_miss
        from data_prep.demo.text import slots_of

        fact, asker = draw_fact(self._lexicon, self._pairs, self._rng), self.voice()
        templates = self._writer.templates(asker, "question")
        template = templates[int(self._rng.integers(len(templates)))]
        answer: Voice = _other(asker, self._rng)
        if asker != "mixed" and self._rng.random() < _RETOLD:
            answer = asker
        self.add(fact, answer)
        self.add(near_miss(fact, self._lexicon, slots_of(template), self._rng), answer)
        return fact, asker, template

    def fill(self, documents: int) -> None:
        """Add other held-out facts up to `documents`, then shuffle, so that an answer's place says nothing."""
        from data_prep.demo.facts import draw_fact

        while len(self.facts) < documents:
            self.add(draw_fact(self._lexicon, self._pairs, self._rng), _other(self.voice(), self._rng))
        order = [int(i) for i in self._rng.permutation(documents)]
        self.facts, self.voices = [self.facts[i] for i in order], [self.voices[i] for i in order]

    def document(self, number: int) -> dict[str, str]:
        """The BEIR row of document `number`."""
        fact, voice = self.facts[number], self.voices[number]
        title = self._writer.say("title", fact, voice)
        body = self._writer.body(fact, voice, fillers=int(self._rng.random() < _FILLED))
        return {"_id": f"doc-{number:06d}", "title": title, "text": body}

    def ask(self, template: str, fact: Fact, voice: Voice) -> str:
        """The question in words."""
        return self._writer.fill(template, fact, voice)

    def passage(self, fact: Fact) -> tuple[str, tuple[str, ...]]:
        """The event and its cause in English, and the slots that the text names."""
        from data_prep.demo.text import slots_of

        chosen = [self._writer.templates("english", role) for role in ("event", "cause")]
        template = " ".join(options[int(self._rng.integers(len(options)))] for options in chosen)
        return self._writer.fill(template, fact, "english"), slots_of(template)


def _write_set(folder: Path, documents: list[dict[str, str]], queries: list[tuple[str, str, list[int]]]) -> int:
    """One BEIR set; a query is (id, text, relevant document numbers). Returns the number of relevance judgements."""
    _write_jsonl(folder / "corpus.jsonl.gz", documents)
    _write_jsonl(folder / "queries.jsonl.gz", ({"_id": ident, "text": text} for ident, text, _ in queries))
    lines = [f"{ident}\t{documents[number]['_id']}\t1" for ident, _, relevant in queries for number in relevant]
    write_atomically(folder / "qrels.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines, ""]).encode())
    return len(lines)


def generate_demo(config: GenerateConfig, *, out: Path, seed: int, progress: Progress) -> dict[str, int | float]:
    """Write `corpora/demo_KIND.jsonl.gz`, `eval_dev/demo_{questions,translation}/` and `relevance/` under `out`.

    `relevance/same_fact.jsonl.gz` holds, for every fact that several training documents tell, those documents: what
    is relevant to what, known by construction. It is for judging mining, never for training.

    A query id begins with who asks: `formal-`, `colloquial-`, `english-` or `mixed-`. A document is relevant if its
    fact agrees with everything that the query mentions.

    Returns:
        Counts: documents, retold_facts, topics, concepts, evaluation_documents, evaluation_queries, judgements.

    Raises:
        UserError: more queries than the evaluation documents carry.
    """
    import numpy as np

    from data_prep.demo.facts import held_out_pairs, training_pairs
    from data_prep.demo.lexicon import load_lexicon
    from data_prep.demo.text import slots_of

    for name, share in (("evaluation_queries", 2), ("translation_queries", 3)):
        queries = getattr(config, name)
        if share * queries > config.evaluation_documents:
            raise UserError(
                f"generate.{name} = {queries}",
                f"must be at most 1/{share} of generate.evaluation_documents ({config.evaluation_documents})",
                f"lower it or set generate.evaluation_documents to {share * queries} or more",
            )
    with progress.work("prepare"):
        progress.begin("write the demo corpus", config.documents + config.evaluation_documents, "documents")
        lexicon = load_lexicon()
        train_rng, eval_rng, deal_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
        held_out = held_out_pairs(lexicon, deal_rng)
        rows, retold = _training_rows(lexicon, training_pairs(lexicon, held_out), config.documents, train_rng)
        for kind in KINDS:
            _write_jsonl(out / "corpora" / f"demo_{kind}.jsonl.gz", rows[kind])
            progress.advance(len(rows[kind]))
        _write_jsonl(
            out / "relevance" / "same_fact.jsonl.gz",
            ({"query": texts[0], "positives": texts[1:], "source": "same_fact"} for texts in retold),
        )

        examiner = _Examiner(lexicon, held_out, eval_rng)
        asked = [examiner.question() for _ in range(config.evaluation_queries)]
        examiner.fill(config.evaluation_documents)
        documents = [examiner.document(number) for number in range(len(examiner.facts))]
        progress.advance(len(documents))
        facts = np.array([[fact.topic, *fact.values] for fact in examiner.facts], dtype=np.int64)

        questions = []
        for number, (fact, voice, template) in enumerate(asked):
            text = examiner.ask(template, fact, voice)
            questions.append((f"{voice}-{number:05d}", text, _relevant(facts, fact, slots_of(template))))
        malay = [number for number, voice in enumerate(examiner.voices) if voice != "english"]
        passages = []
        for number, row in enumerate(eval_rng.choice(len(malay), config.translation_queries, replace=False)):
            fact = examiner.facts[malay[int(row)]]
            text, named = examiner.passage(fact)
            passages.append((f"english-{number:05d}", text, _relevant(facts[malay], fact, named)))
        sets = out / "eval_dev"
        judged = _write_set(sets / "demo_questions", documents, questions)
        judged += _write_set(sets / "demo_translation", [documents[number] for number in malay], passages)
    return {
        "documents": sum(len(part) for part in rows.values()),
        "retold_facts": len(retold),
        "topics": len(lexicon.topics),
        "concepts": sum(len(words) for topic in lexicon.topics for words in topic.slots.values())
        + sum(len(words) for words in lexicon.shared.values()),
        "evaluation_documents": len(documents),
        "evaluation_queries": len(questions) + len(passages),
        "judgements": judged,
    }
