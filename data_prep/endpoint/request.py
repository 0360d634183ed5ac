"""A request and its reply.

Invariant: a request's key is a hash of everything that decides the answer (route, model, messages or inputs, every
parameter) and of nothing else, so that two servers of one model share their answers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from data_prep.files import content_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Route = Literal["chat", "embeddings"]
_TOKENS_A_MESSAGE = 16  # role and separators of a chat template; the widest in use takes 8
_TOKENS_A_CHAT = 128  # what a template adds by itself: a date, a default system message


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        route: which of the server's routes it goes to.
        body: what is sent, JSON values only.
        label: what a list of failures calls it; not part of the key.
    """

    route: Route
    body: Mapping[str, Any]
    label: str = field(default="", compare=False)

    @cached_property
    def key(self) -> str:
        """32 hex digits: the hash of route and body."""
        return content_id(
            json.dumps([self.route, self.body], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        )

    @cached_property
    def most_prompt_tokens(self) -> int:
        """A bound on its prompt tokens: one a byte of text (byte-level vocabularies never take more), and the frame."""
        if self.route == "embeddings":
            return sum(len(text.encode()) + _TOKENS_A_MESSAGE for text in self.body["input"])
        rest = {key: value for key, value in self.body.items() if key in ("tools", "response_format")}
        frame = len(json.dumps(rest, ensure_ascii=False).encode()) + _TOKENS_A_CHAT
        return frame + sum(len(str(m["content"]).encode()) + _TOKENS_A_MESSAGE for m in self.body["messages"])

    @property
    def most_completion_tokens(self) -> int:
        """A bound on its completion tokens."""
        if self.route == "embeddings":
            return 0
        return int(self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 0)


def _sendable(text: str) -> str:
    """The text with halves of surrogate pairs replaced: they have no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def chat(
    model: str, messages: Sequence[tuple[str, str]], *, max_tokens: int, label: str = "", **parameters: Any
) -> Request:
    """A chat completion of `messages`, pairs of role and text. `parameters` are sent as they are."""
    body = {
        "model": model,
        "messages": [{"role": role, "content": _sendable(text)} for role, text in messages],
        "max_tokens": max_tokens,
        **parameters,
    }
    return Request("chat", body, label)


def embeddings(model: str, texts: Sequence[str], *, label: str = "", **parameters: Any) -> Request:
    """The embeddings of `texts`, in one request. `parameters` are sent as they are."""
    return Request("embeddings", {"model": model, "input": [_sendable(text) for text in texts], **parameters}, label)


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: what the model wrote (chat), empty where it refused.
        finish: why it stopped: "stop", "length" (cut off at max_tokens), "content_filter" …
        model: the name under which the server answered.
        prompt_tokens, completion_tokens: as the server counted, else the bounds of the request.
        counted: whether the server counted them.
        cost: of the tokens, in the currency of the prices.
        cached: from the log; nothing was asked or paid now.
        vectors: [inputs, dimension], as the server sent them (embeddings); None for chat.
    """

    text: str = ""
    finish: str = "stop"
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True
    cost: float = 0.0
    cached: bool = False
    vectors: NDArray[np.float32] | None = None

    def to_json(self) -> dict[str, Any]:
        """What the log keeps: everything but the cost, which stands outside; vectors as base64 of float32."""
        kept = ["model", "prompt_tokens", "completion_tokens", "counted"]
        if self.vectors is None:
            return {name: getattr(self, name) for name in ["text", "finish", *kept]}
        data = base64.b64encode(self.vectors.astype("<f4", copy=False).tobytes()).decode()
        return {name: getattr(self, name) for name in kept} | {"shape": self.vectors.shape, "vectors": data}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reply:
        """The reply that `to_json` described, marked as cached. Raises `TypeError`, `ValueError`: there is none."""
        fields = dict(value)
        if "vectors" in fields:
            import numpy as np

            data = base64.b64decode(fields["vectors"], validate=True)
            fields["vectors"] = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(fields.pop("shape"))
        return cls(**fields, cached=True)
