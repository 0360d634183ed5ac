"""Questions written by a language model behind an OpenAI-compatible endpoint; a `Generator`.

Invariant: the same ask with the same prompts, model and parameters is the same request, so what was answered once is
never asked again (see data_prep/endpoint/log.py); an ask that failed yields no question and is asked again by the next
run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.request import Reply, Request, chat
from data_prep.endpoint.session import Failed, Session
from data_prep.progress import Progress
from data_prep.synth.answers import read_cut_questions, read_questions
from data_prep.synth.generator import Ask, Made
from data_prep.synth.prompt import Prompts

_OWN = ("model", "messages", "max_tokens", "temperature", "response_format", "stream", "n")
_SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "questions",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"questions": {"type": "array", "items": {"type": "string"}}},
            "required": ["questions"],
            "additionalProperties": False,
        },
    },
}
COUNTS = ("asks", "questions", "malformed", "repaired", "cut_off", "declined", "surplus", "asks_without_question")


class LlmConfig(EndpointConfig):
    """`[synth.llm]`: the language model that writes questions."""

    prompts: str | None = None
    """Folder of prompt templates that go before the built-in ones (data_prep/synth/prompts); none takes those."""
    max_tokens: Annotated[int, Field(ge=16)] = 1024
    """Tokens of one answer, thoughts of a reasoning model among them; an answer that is cut off keeps its whole
    questions. A spending limit takes each request for this many."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """0 writes the likeliest question; more gives more variety among questions about one text."""
    structured: Literal["auto", "json_schema", "text"] = "auto"
    """`json_schema` has the server force the form of the answer; `text` asks for JSON in words; `auto` tries the first
    and takes the second where the server refuses it."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further parameters, sent as they are: { top_p = 0.9, chat_template_kwargs = { enable_thinking = false } }."""

    @field_validator("extra")
    @classmethod
    def _extra_is_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(set(extra) & set(_OWN)):
            raise ValueError(f"holds {', '.join(own)}, which rumpun sets itself. Fix: remove it from extra")
        return extra


class LlmGenerator:
    """Writes questions with a language model; a context manager.

    Args:
        log: folder of the request log; None keeps none, so a killed run asks everything again.

    Attributes:
        name: the model's name.
        digest: of the prompts; another one asks everything anew.
        counts: those of the endpoint (see `Account`), and: `asks`, `questions`; answers that were `malformed`,
            `repaired` at the second try, `cut_off` at max_tokens, `declined` by the model or its filter; `surplus`
            questions beyond the wanted number; `asks_without_question` after all.

    Raises:
        UserError: see `Endpoint` and `Prompts`.
    """

    def __init__(self, config: LlmConfig, *, log: Path | None = None) -> None:
        self.name = config.model
        self._config = config
        self._prompts = Prompts(Path(config.prompts).expanduser() if config.prompts else None)
        self.digest = self._prompts.digest
        self._endpoint = Endpoint(config, log=log)
        self.counts = self._endpoint.counts
        self.counts.update(dict.fromkeys(COUNTS, 0))
        self._told = {config.model}
        self._schema: bool | None = None if config.structured == "auto" else config.structured == "json_schema"

    def generate(self, asks: Sequence[Ask], *, progress: Progress) -> Iterator[tuple[Ask, list[Made]]]:
        """The questions of every ask, in the order in which they are answered; none for an ask that failed.

        Advances `progress` by one for each ask.

        Raises:
            UserError: the endpoint is down, rate-limited for ever, refuses the key, the model or everything, or the
                next request could pass the spending limit. What was answered is in the log; the same asks go on.
        """
        deciding = asyncio.Lock()

        async def answer(session: Session, ask: Ask) -> list[str]:
            return await self._answer(session, ask, deciding)

        for ask, result in self._endpoint.map(answer, asks, progress=progress):
            for name in sorted(self._endpoint.served - self._told):  # vendors answer as a dated version of a name
                progress.note(f"{self._config.base_url} answers as {name!r}")
                self._told.add(name)
            questions = [] if isinstance(result, Failed) else result
            self._count("asks")
            self._count("surplus", max(0, len(questions) - ask.count))
            questions = questions[: ask.count]
            self._count("questions", len(questions))
            self._count("asks_without_question", not questions)
            yield ask, [Made(question) for question in questions]

    def close(self) -> None:
        """Have the log on the disk and let go of it."""
        self._endpoint.close()

    def __enter__(self) -> LlmGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, name: str, n: int = 1) -> None:
        self.counts[name] += n

    def _request(self, ask: Ask, messages: Sequence[tuple[str, str]], *, schema: bool) -> Request:
        config = self._config
        form = {"response_format": _SCHEMA} if schema else {}
        return chat(
            config.model,
            messages,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            label=f"{ask.style} {ask.target_language} {ask.id}",
            **form,
            **config.extra,
        )

    async def _answer(self, session: Session, ask: Ask, deciding: asyncio.Lock) -> list[str]:
        messages = self._prompts.messages(ask)
        reply, schema = await self._first(session, ask, messages, deciding)
        if (reply.finish == "content_filter" or not reply.text.strip()) and reply.finish != "length":
            self._count("declined")
            return []
        try:
            return read_questions(reply.text)
        except ValueError as error:
            reason = str(error)
        if reply.finish == "length":
            self._count("cut_off")
            return read_cut_questions(reply.text)
        self._count("malformed")
        talk = [*messages, ("assistant", reply.text), ("user", self._prompts.repair(reason, ask.count))]
        second = await session.ask(self._request(ask, talk, schema=schema))
        try:
            questions = read_questions(second.text)
        except ValueError:
            return []
        self._count("repaired")
        return questions

    async def _first(
        self, session: Session, ask: Ask, messages: list[tuple[str, str]], deciding: asyncio.Lock
    ) -> tuple[Reply, bool]:
        """The first answer to an ask, and whether its form was forced."""
        if self._config.structured == "auto":
            for schema in (True, False):  # whatever an earlier run could do, its answers count
                request = self._request(ask, messages, schema=schema)
                if self._endpoint.knows(request):
                    return await session.ask(request), schema
        if self._schema is None:
            async with deciding:  # one request finds out; the others wait for it
                if self._schema is None:
                    return await self._decide(session, ask, messages)
        return await session.ask(self._request(ask, messages, schema=bool(self._schema))), bool(self._schema)

    async def _decide(self, session: Session, ask: Ask, messages: list[tuple[str, str]]) -> tuple[Reply, bool]:
        """Ask with a schema, and without where that is refused; decides for all where one of them is answered."""
        try:
            reply = await session.ask(self._request(ask, messages, schema=True), may_be_refused=True)
            self._schema = True
        except Failed as failed:
            if failed.trouble.kind != "refused":
                raise
            reply = await session.ask(self._request(ask, messages, schema=False))
            self._schema = False
        return reply, self._schema
