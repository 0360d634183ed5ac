"""An embedding model behind an OpenAI-compatible endpoint, as teacher or baseline.

Invariant: a row is the text's own vector whatever the order of the server's answer, every row has one length, and all
rows come from one model; what breaks that stops the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from data_prep.embed.digest import digest_of
from data_prep.embed.embedder import unit_rows
from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.request import Reply, Request, embeddings
from data_prep.endpoint.session import Failed, Session
from data_prep.errors import UserError, within
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Role

_PROBE = "rumpun"


class EmbeddingEndpointConfig(EndpointConfig):
    """`[mine.teacher.endpoint]`: an embedding model behind an endpoint."""

    batch_size: Annotated[int, Field(ge=1, le=2048)] = 64
    """Texts in one request. A batch that the server refuses is halved until the text at fault is found."""
    batch_characters: Annotated[int, Field(ge=1)] = 200_000
    """Characters in one request, a single longer text excepted; servers limit the tokens of a request."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Cut longer texts here, prefix included; none sends them whole, and a server may refuse them."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Ask for vectors of this length, where the model can shorten them; none takes the model's own."""
    encoding: Literal["auto", "base64", "float"] = "auto"
    """How vectors travel: base64 is a quarter of the bytes; `auto` takes `float` where the server refuses that."""


class EndpointEmbedder:
    """An embedding endpoint; a `Teacher`.

    Args:
        query_prefix, passage_prefix: put before every text of that role.
        normalise: unit rows; otherwise rows as the server sends them.
        log: folder of the request log. It keeps the vectors of one call of `embed` only, so that a killed call asks
            nothing twice; whoever calls for other texts has stored those of the call before. None: a killed call is
            lost.
        dimension: what the vectors must have, where that is known (stored vectors); None takes the first answer's.

    Attributes:
        hash: of the model's name and what is asked of it; nobody outside the server can tell its weights.
        counts: of the endpoint, see `Account`.

    Raises:
        UserError: see `Endpoint`.
    """

    may_be_zero = False

    def __init__(
        self,
        config: EmbeddingEndpointConfig,
        *,
        query_prefix: str = "",
        passage_prefix: str = "",
        normalise: bool = True,
        log: Path | None = None,
        dimension: int | None = None,
    ) -> None:
        self.name = config.model
        self.normalised = normalise
        self.hash = digest_of(
            kind="endpoint", **config.identity(), dimensions=config.dimensions, max_characters=config.max_characters
        )
        self._config = config
        self._prefix: dict[Role, str] = {"query": query_prefix, "passage": passage_prefix}
        self._endpoint = Endpoint(config, log=log, log_name="vectors")
        self.counts = self._endpoint.counts
        self._dimension, self._from = dimension or config.dimensions, "asked for"
        self._encoding: str | None = None if config.encoding == "auto" else config.encoding
        self._served = ""
        self._probed = False

    def prompt(self, role: Role) -> str:
        """What goes before a text in this role."""
        return self._prefix[role]

    @property
    def dimension(self) -> int:
        """Length of a vector; asks the server for one where nothing tells. Raises `UserError` as `embed`."""
        if self._dimension is None:
            self._probe()
        assert self._dimension is not None
        return self._dimension

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """[len(texts), dimension], rows L2-normalised unless `normalise` is off; blank texts are zero rows.

        Raises:
            UserError: the endpoint is down, too slow, refuses the key, the model or a text, is over budget, or answers
                with vectors of another length or from another model than before.
        """
        import numpy as np

        if progress:
            progress.begin("embed", len(texts), "texts")
        inputs = [(self._prefix[role] + text)[: self._config.max_characters] for text in texts]
        if any(text.strip() for text in inputs):
            self._probe()
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        blank = [row for row, text in enumerate(inputs) if not text.strip()]
        if progress and blank:
            progress.advance(len(blank))
        wrong: list[tuple[int, Failed]] = []

        async def ask(session: Session, rows: list[int]) -> list[tuple[int, Failed]]:
            return await self._fill(session, inputs, rows, vectors)

        batches = self._batches(inputs)
        if not any(self._endpoint.knows(self._asking(inputs, rows)) for rows in batches):
            self._endpoint.forget_replies()
        for rows, failed in self._endpoint.map(ask, batches):
            wrong += [(row, failed) for row in rows] if isinstance(failed, Failed) else failed
            if progress:
                progress.advance(len(rows), **self._endpoint.shown())
        if wrong:
            row, failed = min(wrong, key=lambda item: item[0])
            start = " ".join(texts[row].split()[:8])[:80]
            raise UserError(
                f"text {row} of {len(texts)} ({len(inputs[row]):,} characters: {start!r})",
                f"and {len(wrong) - 1} more could not be embedded ({failed})",
                "shorten the texts (max_characters), or run again where the server was at fault: the rest is kept",
            )
        return unit_rows(vectors) if self.normalised else vectors

    def _batches(self, inputs: list[str]) -> list[list[int]]:
        """Rows of the requests: longest texts first, so that a text that is too long is found at once."""
        batches: list[list[int]] = []
        characters = 0
        for row in sorted(range(len(inputs)), key=lambda row: (-len(inputs[row]), row)):
            if not inputs[row].strip():
                continue
            full = not batches or len(batches[-1]) == self._config.batch_size
            if full or characters + len(inputs[row]) > self._config.batch_characters:
                batches.append([])
                characters = 0
            batches[-1].append(row)
            characters += len(inputs[row])
        return batches

    def _request(self, texts: list[str], encoding: str | None) -> Request:
        wanted = {"dimensions": self._config.dimensions, "encoding_format": encoding}
        return embeddings(
            self._config.model, texts, label=texts[0][:80], **{k: v for k, v in wanted.items() if v is not None}
        )

    def _asking(self, inputs: list[str], rows: list[int]) -> Request:
        return self._request([inputs[row] for row in rows], self._encoding)

    async def _fill(
        self, session: Session, inputs: list[str], rows: list[int], vectors: NDArray[np.float32]
    ) -> list[tuple[int, Failed]]:
        """Put the vectors of these rows in their places; returns the rows that were refused."""
        import asyncio

        try:
            reply = await session.ask(self._asking(inputs, rows), may_be_refused=len(rows) > 1)
        except Failed as failed:
            if failed.trouble.kind != "refused" or len(rows) == 1:
                return [(row, failed) for row in rows]
            half = len(rows) // 2
            parts = [self._fill(session, inputs, part, vectors) for part in (rows[:half], rows[half:])]
            return [item for part in await asyncio.gather(*parts) for item in part]
        vectors[rows] = self._checked(reply)
        return []

    def _checked(self, reply: Reply) -> NDArray[np.float32]:
        """The vectors of a reply, if they are of the model and the length that the others are of."""
        assert reply.vectors is not None
        found = reply.vectors.shape[1]
        if self._dimension is None:
            self._dimension, self._from = found, "of its first answer"
        if found != self._dimension:
            raise UserError(
                f"model {self.name!r} at {self._config.base_url}: a vector of {found} numbers",
                f"must have the {self._dimension} numbers {self._from}",
                "check that one model answers there, and dimensions; for another model use another folder",
            )
        if reply.model and self._served and reply.model != self._served:
            raise UserError(
                f"model {self.name!r} at {self._config.base_url}",
                f"answered as {self._served!r} and then as {reply.model!r}: vectors of two models cannot be compared",
                "name the exact version of the model",
            )
        self._served = self._served or reply.model
        return reply.vectors

    @within("endpoint")
    def _probe(self) -> None:
        """One short text: how vectors may travel, and how long they are. Once a process."""
        if self._probed:
            return
        encodings = [self._encoding] if self._encoding else ["base64", "float"]

        async def ask(session: Session, encoding: str) -> Reply:
            last = encoding == encodings[-1]
            return await session.ask(self._request([_PROBE], encoding), may_be_refused=not last)

        for encoding in encodings:
            for _, reply in self._endpoint.map(ask, [encoding]):
                if isinstance(reply, Reply):
                    self._checked(reply)
                    self._encoding, self._probed = encoding, True
                    return
        assert isinstance(reply, Failed)
        raise UserError(
            f"base_url = {self._config.base_url!r}, model {self.name!r}",
            f"refuses to embed one word ({reply.trouble.why})",
            "see whether this model embeds, and whether it can shorten vectors where dimensions is set",
        )
