"""What a server sends → a `Reply`. Whatever is not as the protocol says is `Malformed`, with the reason."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from data_prep.endpoint.request import Reply, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Malformed(Exception):
    """An answer that the protocol does not allow."""


def read_reply(request: Request, content: bytes) -> Reply:
    """The reply in the body of a response with status 200, without its cost.

    Raises:
        Malformed: not JSON, no choices, a missing or second vector, vectors of several lengths, NaN …
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the answer is not JSON: {_start(content)}") from error
    if not isinstance(body, dict):
        raise Malformed(f"the answer is no JSON object: {_start(content)}")
    model = str(body.get("model") or "")
    usage = body.get("usage")
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens") if request.route == "chat" else 0
    counted = prompt is not None and completion is not None
    tokens = {
        "prompt_tokens": prompt if prompt is not None else request.most_prompt_tokens,
        "completion_tokens": completion if completion is not None else request.most_completion_tokens,
        "counted": counted,
    }
    if request.route == "embeddings":
        return Reply(model=model, vectors=_vectors(body, len(request.body["input"])), **tokens)  # type: ignore[arg-type]
    text, finish = _choice(body, content)
    return Reply(text=text, finish=finish, model=model, **tokens)  # type: ignore[arg-type]


def _start(content: bytes) -> str:
    return repr(content[:80].decode("utf-8", "replace"))


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _choice(body: dict[str, Any], content: bytes) -> tuple[str, str]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Malformed(f"the answer has no choices: {_start(content)}")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise Malformed(f"the answer's choice has no message: {_start(content)}")
    text = message.get("content")
    return text if isinstance(text, str) else "", str(choices[0].get("finish_reason") or "stop")


def _vectors(body: dict[str, Any], count: int) -> NDArray[np.float32]:
    import numpy as np

    data = body.get("data")
    if not isinstance(data, list) or len(data) != count or not all(isinstance(item, dict) for item in data):
        got = len(data) if isinstance(data, list) else "no"
        raise Malformed(f"the answer has {got} vectors for {count} texts")
    # the protocol numbers the vectors and promises no order
    numbers = [item.get("index", place) for place, item in enumerate(data)]
    if sorted(map(str, numbers)) != sorted(map(str, range(count))):
        raise Malformed(f"the answer numbers its {count} vectors {numbers[:8]}")
    rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * count
    for number, item in zip(numbers, data, strict=True):
        rows[int(number)] = _vector(item.get("embedding"))
    if len({row.shape for row in rows}) > 1:
        raise Malformed(f"the answer mixes vectors of {sorted({row.size for row in rows})} numbers")
    vectors = np.stack(rows)
    if not vectors.shape[1] or not np.isfinite(vectors).all():
        raise Malformed("a vector of the answer is empty or holds NaN or infinity")
    return vectors


def _vector(value: Any) -> NDArray[np.float32]:
    import numpy as np

    try:
        if isinstance(value, str):  # encoding_format base64: float32, little-endian
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
        with np.errstate(over="ignore"):
            vector = np.asarray(value, dtype=np.float64).astype(np.float32)
    except (ValueError, TypeError, binascii.Error) as error:
        raise Malformed(f"a vector of the answer is neither numbers nor base64 of float32 ({error})") from error
    if vector.ndim != 1:
        raise Malformed(f"a vector of the answer has {vector.ndim} dimensions")
    return vector
