"""A real HTTP server on 127.0.0.1 that speaks the OpenAI protocol and goes wrong when it is told to.

with EndpointServer() as server:
    server.faults.append(rate_limited(retry_after=0.05))   # the next request
    server.rule = lambda asked: cut() if asked.number == 3 else None   # or by rule
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Asked:
    """One request as it came."""

    number: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    time_s: float
    done: bool = False

    @property
    def key(self) -> str:
        return json.dumps([self.path, self.body], sort_keys=True)

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])


@dataclass
class Fault:
    """How one answer goes wrong. `change` works on the right answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    message: str = ""
    code: str = ""
    cut_after: int | None = None
    delay_s: float = 0.0
    drip_s: float = 0.0
    change: Callable[[dict[str, Any]], Any] | None = None


def rate_limited(retry_after: float | str | None = None, *, code: str = "rate_limit_exceeded") -> Fault:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Fault(429, headers, message="slow down", code=code)


def server_error(status: int = 500) -> Fault:
    return Fault(status, message="the server has a bad day")


def cut(after: int = 20) -> Fault:
    """The connection ends after so many bytes of the body."""
    return Fault(cut_after=after)


def malformed() -> Fault:
    return Fault(content=b'{"choices": [{"mess')


def slow(seconds: float) -> Fault:
    return Fault(delay_s=seconds)


def dripping(seconds: float) -> Fault:
    """A byte at a time, with a pause after each."""
    return Fault(drip_s=seconds)


def refused(message: str = "bad request", status: int = 400) -> Fault:
    return Fault(status, message=message)


def unauthorised(message: str = "Incorrect API key provided") -> Fault:
    return Fault(401, message=message, code="invalid_api_key")


def no_model() -> Fault:
    return Fault(404, message="The model does not exist", code="model_not_found")


def empty_choices() -> Fault:
    return Fault(change=lambda answer: {**answer, "choices": []})


def no_usage() -> Fault:
    return Fault(change=lambda answer: {key: value for key, value in answer.items() if key != "usage"})


def other_model(name: str) -> Fault:
    return Fault(change=lambda answer: {**answer, "model": name})


def truncated(text: str) -> Fault:
    """The model was stopped by max_tokens after `text`."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": text}}
        return {**answer, "choices": [choice]}

    return Fault(change=change)


def other_dimension(dimension: int) -> Fault:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "data": [{**item, "embedding": [0.5] * dimension} for item in answer["data"]]}

    return Fault(change=change)


def vector_of(text: str, dimension: int) -> list[float]:
    """The embedding that the server gives a text: numbers from its hash, not of unit length."""
    numbers = []
    for place in range(dimension):
        digest = hashlib.sha256(f"{place}:{text}".encode()).digest()
        numbers.append(struct.unpack("<I", digest[:4])[0] / 2**31 - 1)
    return [struct.unpack("<f", struct.pack("<f", number))[0] for number in numbers]


class EndpointServer:
    """The server; a context manager.

    Attributes:
        faults: one for each of the next requests; None is a right answer.
        rule: asked where `faults` is empty; returns a fault or None.
        answer: writes the text of a chat answer.
        asked: every request that came, in order, but those for /models.
        most_at_once: the most requests that were in work at one time.
    """

    def __init__(
        self,
        *,
        model: str = "test-model",
        dimension: int = 8,
        answer: Callable[[Asked], str] | None = None,
        rule: Callable[[Asked], Fault | None] | None = None,
        delay_s: float = 0.0,
        base64: bool = True,
        schemas: bool = True,
    ) -> None:
        self.model, self.dimension, self.delay_s = model, dimension, delay_s
        self.answer = answer or (lambda asked: f"echo {asked.text}")
        self.rule = rule
        self.base64, self.schemas = base64, schemas
        self.faults: deque[Fault | None] = deque()
        self.asked: list[Asked] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def times(self) -> Counter[str]:
        """How often each request was answered to the end."""
        with self._lock:
            return Counter(asked.key for asked in self.asked if asked.done)

    def __enter__(self) -> EndpointServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _begin(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[Asked, Fault]:
        with self._lock:
            asked = Asked(len(self.asked), path, body, headers, time.monotonic())
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            fault = self.faults.popleft() if self.faults else (self.rule(asked) if self.rule else None)
        return asked, fault or Fault()

    def _end(self, asked: Asked, done: bool) -> None:
        with self._lock:
            self._now -= 1
            asked.done = done

    def _chat(self, asked: Asked) -> dict[str, Any] | Fault:
        if "response_format" in asked.body and not self.schemas:
            return refused("response_format is not supported")
        text = self.answer(asked)
        prompt = sum(len(message["content"].split()) for message in asked.body["messages"])
        return {
            "id": f"chat-{asked.number}",
            "object": "chat.completion",
            "model": asked.body["model"],
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}},
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(text.split()), "total_tokens": 0},
        }

    def _embeddings(self, asked: Asked) -> dict[str, Any] | Fault:
        encoded = asked.body.get("encoding_format") == "base64"
        if encoded and not self.base64:
            return refused("encoding_format must be float")
        data = []
        for index, text in enumerate(asked.body["input"]):
            vector = vector_of(text, asked.body.get("dimensions", self.dimension))
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": packed if encoded else vector})
        data.reverse()  # the protocol promises numbers, not an order
        tokens = sum(len(text.split()) for text in asked.body["input"])
        return {"object": "list", "model": asked.body["model"], "data": data, "usage": {"prompt_tokens": tokens}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: EndpointServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that were killed or cut off are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        if self.path.endswith("/models"):
            self._send(200, {}, json.dumps({"object": "list", "data": [{"id": owner.model}]}).encode())
        else:
            self._send(404, {}, b'{"detail": "Not Found"}')

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked, fault = owner._begin(self.path, body, {k.lower(): v for k, v in self.headers.items()})
        done = False
        try:
            time.sleep(fault.delay_s + owner.delay_s)
            answer: dict[str, Any] | Fault
            if fault.status != 200:
                answer = fault
            elif body.get("model") != owner.model:
                answer = no_model()
            elif self.path == "/v1/chat/completions":
                answer = owner._chat(asked)
            elif self.path == "/v1/embeddings":
                answer = owner._embeddings(asked)
            else:
                answer = Fault(404, content=b'{"detail": "Not Found"}')
            done = self._answer(answer, fault)
        finally:
            owner._end(asked, done)

    def _answer(self, answer: dict[str, Any] | Fault, fault: Fault) -> bool:
        if isinstance(answer, Fault):
            error = {"error": {"message": answer.message, "code": answer.code}}
            content = answer.content if answer.content is not None else json.dumps(error).encode()
            self._send(answer.status, answer.headers, content)
            return False
        changed = fault.change(answer) if fault.change else answer
        content = fault.content if fault.content is not None else json.dumps(changed).encode()
        if fault.cut_after is not None:
            self._send(200, {}, content[: fault.cut_after], length=len(content))
            self.close_connection = True
            return False
        if fault.drip_s:
            self._send(200, {}, b"", length=len(content))
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(fault.drip_s)
            return True
        self._send(200, fault.headers, content)
        return fault.content is None

    def _send(self, status: int, headers: dict[str, str], content: bytes, *, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
