"""Every fault of a real server: what is retried, what is given up, what stops the run and what the user is told."""

from __future__ import annotations

import builtins
import gc
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.request import Reply, Request, chat
from data_prep.endpoint.session import Failed
from data_prep.errors import UserError
from data_prep.progress import Progress
from tests.data_prep import endpoint_server as faults
from tests.data_prep.endpoint_server import Asked, EndpointServer, Fault

MakeConfig = Callable[..., EndpointConfig]


def requests(count: int, *, model: str = "test-model") -> list[Request]:
    return [
        chat(model, [("user", f"soalan nombor {number}")], max_tokens=10, label=f"r{number}") for number in range(count)
    ]


def ask(config: EndpointConfig, count: int = 8, *, log: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """label → reply or failure, and the counts."""
    with Endpoint(config, log=log) as endpoint:
        results = {request.label: result for request, result in endpoint.run(requests(count))}
        return results, endpoint.counts


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.rate_limited(0.02), "rate_limited"),
        (faults.rate_limited(), "rate_limited"),
        (faults.server_error(500), "server_error"),
        (faults.server_error(503), "server_error"),
        (faults.cut(0), "cut"),
        (faults.cut(30), "cut"),
        (faults.malformed(), "malformed"),
        (Fault(content=b""), "malformed"),
        (Fault(content=b"[1]"), "malformed"),
        (Fault(content=b"<html>gateway</html>"), "malformed"),
        (faults.empty_choices(), "malformed"),
        (Fault(change=lambda answer: {**answer, "choices": [{"index": 0}]}), "malformed"),
    ],
)
def test_a_fault_is_retried_and_counted(server: EndpointServer, config: MakeConfig, fault: Fault, kind: str) -> None:
    server.faults.extend([None, fault, None, fault])
    results, counts = ask(config(concurrency=3))
    assert {label: reply.text for label, reply in results.items()} == {
        f"r{n}": f"echo soalan nombor {n}" for n in range(8)
    }
    assert counts["requests"] == len(server.asked) == 10
    assert (counts["answers"], counts["retries"], counts["failed"]) == (8, 2, 0)
    assert counts[f"trouble_{kind}"] == 2
    # 3 words asked and 4 answered in each of the 8 answers
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (24, 32)


@pytest.mark.parametrize("fault", [faults.slow(1.0), faults.dripping(0.01)])
def test_a_slow_answer_is_given_up_and_asked_again(server: EndpointServer, config: MakeConfig, fault: Fault) -> None:
    server.faults.extend([None, fault])
    results, counts = ask(config(timeout_s=0.3, concurrency=1))
    assert len(results) == 8 and all(isinstance(reply, Reply) for reply in results.values())
    assert counts["trouble_timeout"] == 1


def test_what_stays_wrong_is_a_failed_item_and_the_rest_goes_on(
    server: EndpointServer, config: MakeConfig, tmp_path: Path
) -> None:
    server.rule = lambda asked: faults.server_error() if "nombor 5" in asked.text else None
    results, counts = ask(config(retries=2), log=tmp_path)
    failed = results.pop("r5")
    assert isinstance(failed, Failed) and failed.trouble.kind == "server_error"
    assert all(isinstance(reply, Reply) for reply in results.values())
    assert (counts["failed"], counts["failed_server_error"]) == (1, 1)
    assert sum("nombor 5" in asked.text for asked in server.asked) == 3
    assert '"label": "r5"' in (tmp_path / "requests.failed.jsonl").read_text()
    server.rule = None
    results, counts = ask(config(), log=tmp_path)
    assert isinstance(results["r5"], Reply)
    assert (counts["requests"], counts["cache_hits"]) == (1, 7)
    assert not (tmp_path / "requests.failed.jsonl").exists()


def test_a_run_with_nothing_but_hopeless_requests_left_ends(
    server: EndpointServer, config: MakeConfig, tmp_path: Path
) -> None:
    server.rule = lambda asked: faults.server_error() if re.search("nombor .*[02468]$", asked.text) else None
    for run in range(2):
        results, counts = ask(config(retries=1, concurrency=2), 40, log=tmp_path)
        failed = sorted(label for label, reply in results.items() if isinstance(reply, Failed))
        assert failed == sorted(f"r{number}" for number in range(0, 40, 2))
        assert counts["failed"] == 20 and counts["cache_hits"] == (20 if run else 0)
    assert counts["answers"] <= 3  # one word each time that all may be down


def test_a_refused_request_is_not_retried(server: EndpointServer, config: MakeConfig) -> None:
    server.rule = lambda asked: faults.refused("prompt is too long") if "nombor 5" in asked.text else None
    results, counts = ask(config())
    assert "prompt is too long" in str(results["r5"])
    assert counts["requests"] == 8 and counts["retries"] == 0


def test_a_server_that_refuses_everything_is_told(server: EndpointServer, config: MakeConfig) -> None:
    server.rule = lambda _: faults.refused("unknown field top_q")
    with pytest.raises(UserError, match=r"refuses every request .*top_q"):
        ask(config(concurrency=2), 50)
    assert len(server.asked) <= 4 * 2 + 2  # those that were begun, and one word


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_requests_that_are_all_refused_are_told_too(
    server: EndpointServer, config: MakeConfig, count: int
) -> None:
    server.rule = lambda _: faults.refused("no such model")
    with pytest.raises(UserError, match=r"refuses every request .*no such model"):
        ask(config(), count)


def test_nobody_there_is_told_within_seconds(config: MakeConfig) -> None:
    with EndpointServer() as gone:
        url = gone.url
    started_s = time.monotonic()
    with pytest.raises(UserError) as caught:
        ask(config(base_url=url, backoff_s=0.5), 1000)
    assert time.monotonic() - started_s < 60  # and not hours
    assert url in caught.value.value and "cannot be reached" in caught.value.rule and "/models" in caught.value.fix


@pytest.mark.parametrize("fault", [faults.server_error(), faults.cut(), faults.malformed()])
def test_a_server_that_answers_nobody_is_told_soon(server: EndpointServer, config: MakeConfig, fault: Fault) -> None:
    server.rule = lambda _: fault
    with pytest.raises(UserError, match="answers no request"):
        ask(config(concurrency=4), 500)
    assert len(server.asked) <= 4 * 4 * 3 + 1  # tries of the requests that were begun, and one word


def test_a_server_that_goes_down_in_the_middle_is_told_and_the_answers_stay(
    server: EndpointServer, config: MakeConfig, tmp_path: Path
) -> None:
    server.rule = lambda asked: None if asked.number < 30 else faults.server_error(502)
    with pytest.raises(UserError, match=r"answers no request .*30 answers are saved in "):
        ask(config(retries=1, concurrency=4), 200, log=tmp_path)
    server.rule = None
    results, counts = ask(config(), 200, log=tmp_path)
    assert len(results) == 200 and counts["cache_hits"] == 30 and counts["requests"] == 170


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.unauthorised(), ["HTTP 401", "api_key_env"]),
        (Fault(403, message="no"), ["HTTP 403", "api_key_env"]),
        (Fault(402, message="pay first"), ["pay first", "account"]),
        (faults.rate_limited(code="insufficient_quota"), ["HTTP 429", "account"]),
        (Fault(307, headers={"Location": "http://other.example/v1"}), ["redirects to http://other.example/v1"]),
    ],
)
def test_what_no_retry_can_mend_stops_at_once(
    server: EndpointServer, config: MakeConfig, fault: Fault, words: list[str]
) -> None:
    server.rule = lambda asked: fault if asked.number else None
    with pytest.raises(UserError) as caught:
        ask(config(concurrency=1), 100)
    assert len(server.asked) == 2
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_model_that_is_not_there_is_told_with_those_that_are(server: EndpointServer, config: MakeConfig) -> None:
    wrong = config(model="tset-model")
    with pytest.raises(UserError, match="did you mean 'test-model'"), Endpoint(wrong) as endpoint:
        list(endpoint.run(requests(5, model="tset-model")))


def test_a_forgotten_v1_is_told(server: EndpointServer, config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"usually ends in /v1"):
        ask(config(base_url=server.url.removesuffix("/v1")))


def test_missing_usage_is_bounded_and_marked(server: EndpointServer, config: MakeConfig) -> None:
    server.faults.append(faults.no_usage())
    results, counts = ask(config(price_in=1.0, price_out=2.0), 1)
    reply = results["r0"]
    assert not reply.counted and counts["answers_without_usage"] == 1
    assert reply.completion_tokens == 10  # max_tokens
    assert reply.prompt_tokens >= len("soalan nombor 0")
    assert counts["cost"] == pytest.approx((reply.prompt_tokens + 2 * 10) / 1e6)


def test_a_cut_off_answer_says_so(server: EndpointServer, config: MakeConfig) -> None:
    server.faults.append(faults.truncated('{"questions": ["Siapa'))
    results, _ = ask(config(), 1)
    assert (results["r0"].finish, results["r0"].text) == ("length", '{"questions": ["Siapa')


def test_parameters_of_a_server_reach_it(server: EndpointServer, config: MakeConfig) -> None:
    request = chat("test-model", [("user", "apa")], max_tokens=5, temperature=0.5, top_k=7, seed=3)
    with Endpoint(config()) as endpoint:
        list(endpoint.run([request]))
    assert server.asked[0].body == {
        "model": "test-model",
        "messages": [{"role": "user", "content": "apa"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 7,
        "seed": 3,
    }


def test_text_without_a_utf8_form_is_sent_all_the_same(server: EndpointServer, config: MakeConfig) -> None:
    with Endpoint(config()) as endpoint:
        (pair,) = endpoint.run([chat("test-model", [("user", "a\ud800b \x00 😀")], max_tokens=5)])
    assert server.asked[0].text == "a?b \x00 😀"
    assert isinstance(pair[1], Reply)


def test_a_defect_of_the_caller_keeps_its_traceback(config: MakeConfig) -> None:
    def broken() -> Any:
        yield from requests(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Endpoint(config()) as endpoint:
        list(endpoint.run(broken()))

    async def work(_: object, number: int) -> int:
        return 1 // (number - 60)

    with pytest.raises(ZeroDivisionError), Endpoint(config()) as endpoint:
        list(endpoint.map(work, range(1000)))


def test_a_caller_that_stops_early_leaves_nothing_running(server: EndpointServer, config: MakeConfig) -> None:
    server.delay_s = 0.01
    with Endpoint(config(concurrency=2)) as endpoint:
        answers = endpoint.run(requests(500))
        next(answers)
        answers.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]
    asked = len(server.asked)
    time.sleep(0.1)
    assert len(server.asked) == asked < 30


def test_an_interrupt_in_the_callers_own_code_lets_little_go_on(server: EndpointServer, config: MakeConfig) -> None:
    def stop_at_once() -> None:
        with Endpoint(config(concurrency=2)) as endpoint:
            for _ in endpoint.run(requests(500)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:
        stop_at_once()
    time.sleep(0.2)
    assert len(server.asked) <= 4 * 2 + 2  # even while something holds on to the iterator
    del held
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "endpoint"]


def test_requests_are_read_as_they_are_needed(server: EndpointServer, config: MakeConfig) -> None:
    read = 0

    def counted() -> Any:
        nonlocal read
        for request in requests(1000):
            read += 1
            yield request

    with Endpoint(config(concurrency=2)) as endpoint:
        answers = endpoint.run(counted())
        for _ in range(10):
            next(answers)
        time.sleep(0.1)
        assert read < 40
        answers.close()


def test_progress_shows_tokens_and_cost(server: EndpointServer, config: MakeConfig) -> None:
    class Seen(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.done, self.last = 0, dict[str, Any]()

        def advance(self, n: int = 1, **shown: float | str) -> None:
            self.done, self.last = self.done + n, shown

    progress = Seen()
    server.faults.append(faults.rate_limited(0.01))
    with Endpoint(config(price_in=10.0, price_out=10.0)) as endpoint:
        list(endpoint.run(requests(4), progress=progress))
    assert progress.done == 4
    assert progress.last == {"tokens": 28, "cost": f"{28 * 10 / 1e6:.4g}", "retries": 1}


def test_without_openai_the_user_is_told_what_to_install(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "openai":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'rumpun\[synth\]'"):
        ask(config())


def test_identical_requests_are_asked_once(server: EndpointServer, config: MakeConfig) -> None:
    server.delay_s = 0.05
    with Endpoint(config()) as endpoint:
        results = list(endpoint.run(requests(1) * 5))
    assert len(server.asked) == 1
    assert [reply.text for _, reply in results if isinstance(reply, Reply)] == ["echo soalan nombor 0"] * 5
    assert endpoint.counts["answers"] == 1 and endpoint.counts["cache_hits"] == 4


def test_answers_belong_to_their_requests(server: EndpointServer, config: MakeConfig) -> None:
    server.rule = lambda asked: faults.slow(0.02 * (asked.number % 3))

    def check(asked: Asked) -> str:
        return asked.text[::-1]

    server.answer = check
    with Endpoint(config(concurrency=8)) as endpoint:
        for request, reply in endpoint.run(requests(40)):
            assert isinstance(reply, Reply)
            assert reply.text == request.body["messages"][0]["content"][::-1]
