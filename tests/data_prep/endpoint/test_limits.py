"""How many at a time, how fast, for how long and for how much."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.request import Reply, Request, chat
from data_prep.errors import UserError
from tests.data_prep import endpoint_server as faults
from tests.data_prep.endpoint_server import Asked, EndpointServer

MakeConfig = Callable[..., EndpointConfig]


def requests(count: int, *, max_tokens: int = 10) -> list[Request]:
    return [chat("test-model", [("user", f"soalan nombor {n}")], max_tokens=max_tokens) for n in range(count)]


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_never_more_at_once_than_allowed(server: EndpointServer, config: MakeConfig, concurrency: int) -> None:
    together = threading.Barrier(concurrency)

    def meet(asked: Asked) -> str:
        if asked.number < concurrency:
            together.wait(30)  # all of the first are there at one time, or this fails
        return "ya"

    server.answer = meet
    server.rule = lambda asked: (
        faults.server_error() if asked.number >= concurrency and asked.number % 5 == 1 else faults.slow(0.002)
    )
    with Endpoint(config(concurrency=concurrency, retries=20, timeout_s=60.0)) as endpoint:
        assert len(list(endpoint.run(requests(40)))) == 40
    assert server.most_at_once == concurrency


def test_a_pause_that_the_server_asks_for_holds_for_all(server: EndpointServer, config: MakeConfig) -> None:
    server.faults.extend([None, faults.rate_limited(0.4)])
    with Endpoint(config(concurrency=1)) as endpoint:
        assert len(list(endpoint.run(requests(6)))) == 6
    times_s = [asked.time_s for asked in server.asked]
    assert times_s[2] - times_s[1] >= 0.39  # the retry or another request: nobody came before


def test_a_date_to_retry_after_is_understood(server: EndpointServer, config: MakeConfig) -> None:
    server.faults.append(faults.rate_limited("Sun, 06 Nov 1994 08:49:37 GMT"))  # long past: at once
    with Endpoint(config()) as endpoint:
        assert len(list(endpoint.run(requests(2)))) == 2


def test_waiting_for_a_rate_limit_uses_up_no_retries(server: EndpointServer, config: MakeConfig) -> None:
    server.faults.extend([faults.rate_limited(0.001)] * 12)
    with Endpoint(config(retries=0, concurrency=1)) as endpoint:
        assert all(isinstance(reply, Reply) for _, reply in endpoint.run(requests(2)))


def test_backing_off_doubles(server: EndpointServer, config: MakeConfig) -> None:
    server.faults.extend([None, *[faults.server_error()] * 4])
    with Endpoint(config(concurrency=1, backoff_s=0.04)) as endpoint:
        list(endpoint.run(requests(2)))
    times_s = [asked.time_s for asked in server.asked][1:]
    pauses_s = [after - before for before, after in itertools.pairwise(times_s)]
    for number, pause_s in enumerate(pauses_s):
        assert pause_s >= 0.04 * 2**number / 2


def test_a_rate_limit_without_end_is_told_and_goes_on_later(
    server: EndpointServer, config: MakeConfig, tmp_path: Path
) -> None:
    server.rule = lambda asked: None if asked.number < 5 else faults.rate_limited(0.02)
    with pytest.raises(UserError) as caught, Endpoint(config(patience_s=0.3, concurrency=2), log=tmp_path) as endpoint:
        list(endpoint.run(requests(20)))
    assert "nothing but rate limits" in caught.value.rule and "patience_s is 0.3" in caught.value.rule
    assert f"5 answers are saved in {tmp_path}" in caught.value.rule and "same command goes on" in caught.value.fix
    server.rule = None
    with Endpoint(config(), log=tmp_path) as endpoint:
        assert len(list(endpoint.run(requests(20)))) == 20
        assert endpoint.counts["cache_hits"] == 5


def test_a_pause_longer_than_the_patience_is_told_at_once(server: EndpointServer, config: MakeConfig) -> None:
    server.rule = lambda _: faults.rate_limited(86_400)
    started_s = time.monotonic()
    with pytest.raises(UserError, match="asks for a pause of 86400 s"), Endpoint(config()) as endpoint:
        list(endpoint.run(requests(20)))
    assert time.monotonic() - started_s < 60  # and not a day


def test_one_request_that_is_limited_for_ever_does_not_hold_up_the_rest(
    server: EndpointServer, config: MakeConfig
) -> None:
    server.delay_s = 0.02
    server.rule = lambda asked: faults.rate_limited() if asked.text.endswith(" 3") else None
    with Endpoint(config(patience_s=0.3, concurrency=2)) as endpoint:
        results = list(endpoint.run(requests(60)))
    (failed,) = [str(reply) for _, reply in results if not isinstance(reply, Reply)]
    assert "rate_limited" in failed
    assert len(results) == 60 and endpoint.counts["answers"] == 59


def test_requests_a_minute(server: EndpointServer, config: MakeConfig) -> None:
    started_s = time.monotonic()
    with Endpoint(config(requests_per_minute=3000)) as endpoint:  # one in 20 ms
        list(endpoint.run(requests(10)))
    times_s = sorted(asked.time_s - started_s for asked in server.asked)
    assert all(time_s >= 0.02 * number for number, time_s in enumerate(times_s))


def test_the_run_stops_before_the_limit_is_passed(server: EndpointServer, config: MakeConfig, tmp_path: Path) -> None:
    # each answer costs 3 + 4 tokens at 1000 a million; each may cost up to 10 and a bound on the prompt
    limited = config(price_in=1000.0, price_out=1000.0, spending_limit=0.3, concurrency=4)
    with pytest.raises(UserError) as caught, Endpoint(limited, log=tmp_path) as endpoint:
        list(endpoint.run(requests(500)))
    assert "spending_limit = 0.3" in caught.value.value and "same command goes on" in caught.value.fix
    most = endpoint._account.most(requests(1)[0])
    answered = sum(asked.done for asked in server.asked)
    assert answered == endpoint.counts["answers"] == len(server.asked)  # what was on its way was waited for
    assert endpoint.counts["cost"] == pytest.approx(answered * 7 / 1000)
    assert 0.3 - most - 0.007 < endpoint.counts["cost"] <= 0.3
    # the same command spends nothing more; a higher limit goes on
    with pytest.raises(UserError, match="spending_limit"), Endpoint(limited, log=tmp_path) as endpoint:
        list(endpoint.run(requests(500)))
    assert len(server.asked) == answered and endpoint.counts["cache_hits"] == answered
    higher = limited.model_copy(update={"spending_limit": 10.0})
    with Endpoint(higher, log=tmp_path) as endpoint:
        assert len(list(endpoint.run(requests(500)))) == 500
    assert len(server.asked) == 500


def test_a_request_that_could_pass_a_tiny_limit_is_never_sent(server: EndpointServer, config: MakeConfig) -> None:
    tiny = config(price_out=1.0, spending_limit=9e-6)
    with pytest.raises(UserError, match=r"0 is spent and the next request may cost up to 1e-05"):
        list(Endpoint(tiny).run(requests(3, max_tokens=10)))
    assert server.asked == []


def test_the_most_that_a_request_can_cost_bounds_what_it_costs(server: EndpointServer, config: MakeConfig) -> None:
    server.delay_s = 0.005
    limited = config(price_in=1000.0, price_out=1000.0, spending_limit=0.5, concurrency=16)
    total = 0.0
    with pytest.raises(UserError), Endpoint(limited) as endpoint:
        for _, reply in endpoint.run(requests(500)):
            assert isinstance(reply, Reply)
            total += reply.cost
    assert total <= 0.5


def test_answers_that_never_came_count_at_their_most(
    server: EndpointServer, config: MakeConfig, tmp_path: Path
) -> None:
    server.faults.extend([None, faults.cut()])
    priced = config(price_in=1.0, price_out=1.0, spending_limit=1.0, concurrency=1)
    with Endpoint(priced, log=tmp_path) as endpoint:
        list(endpoint.run(requests(2)))
        most = endpoint._account.most(requests(2)[1])
        assert endpoint.counts["cost_lost"] == pytest.approx(most) and most > 0
        spent = endpoint._account.spent
    with Endpoint(priced, log=tmp_path) as endpoint:
        assert endpoint._account.spent == pytest.approx(spent)
