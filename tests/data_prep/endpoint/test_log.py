"""The request log: what a killed, interrupted or broken run has answered is never asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.log import RequestLog
from data_prep.endpoint.request import Reply, Request, chat, embeddings
from data_prep.errors import UserError
from tests.data_prep.endpoint_server import EndpointServer

MakeConfig = Callable[..., EndpointConfig]
RUN = """
import signal, sys
from pathlib import Path
from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.request import chat

signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(75))  # as the command line takes requests to stop
url, log, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
config = EndpointConfig(base_url=url, model="test-model", concurrency=4, price_in=1.0, price_out=1.0)
requests = [chat("test-model", [("user", f"soalan {n}")], max_tokens=9) for n in range(count)]
with Endpoint(config, log=log) as endpoint:
    for number, _ in enumerate(endpoint.run(requests)):
        print(number, flush=True)
"""


def start(url: str, log: Path, repo: Path, *, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, url, str(log), str(count)],
        cwd=repo,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], answers: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) + 1 >= answers:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "")


def question(number: int) -> Request:
    return chat("test-model", [("user", f"soalan {number}")], max_tokens=9)


def test_a_killed_run_asks_nothing_twice_that_was_answered(server: EndpointServer, tmp_path: Path, repo: Path) -> None:
    server.delay_s = 0.01
    process = start(server.url, tmp_path, repo, count=120)
    read_until(process, 40)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.1)
    written = {json.loads(line)["key"] for line in (tmp_path / "requests.jsonl").read_text().splitlines()}
    assert len(written) >= 40
    again = start(server.url, tmp_path, repo, count=120)
    lines, errors = again.communicate()
    assert again.returncode == 0, errors
    assert len(lines.splitlines()) == 120
    texts = [asked.text for asked in server.asked]
    twice = {text for text in texts if texts.count(text) > 1}
    assert set(texts) == {f"soalan {n}" for n in range(120)}
    assert len(twice) <= 4  # what was on its way when the kill came: at most `concurrency`
    assert not twice & {f"soalan {n}" for n in range(120) if question(n).key in written}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_run_ends_soon_and_keeps_what_was_answered(
    server: EndpointServer, tmp_path: Path, repo: Path, number: signal.Signals
) -> None:
    server.delay_s = 0.02
    process = start(server.url, tmp_path, repo, count=2000)
    read_until(process, 20)
    asked = len(server.asked)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert len(server.asked) < asked + 500
    assert process.returncode == (75 if number == signal.SIGUSR1 else -number)
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    time.sleep(0.1)
    answered = sum(asked.done for asked in server.asked)
    data = (tmp_path / "requests.jsonl").read_bytes()
    lines = [json.loads(line) for line in data.splitlines()]
    replies = [line for line in lines if "reply" in line]
    assert data.endswith(b"\n")
    assert len(replies) >= 20 and answered - 4 <= len(replies) <= answered
    if number != signal.SIGTERM:  # what was dropped on its way may have been paid
        assert sum("lost" in line for line in lines) <= 4


def test_a_half_written_last_line_is_cut_off(server: EndpointServer, config: MakeConfig, tmp_path: Path) -> None:
    with Endpoint(config(), log=tmp_path) as endpoint:
        list(endpoint.run([question(0), question(1)]))
    path = tmp_path / "requests.jsonl"
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2 - 10, len(whole) - 3):
        path.write_bytes(whole[:-cut])
        left = whole[:-cut].count(b"\n")
        with Endpoint(config(), log=tmp_path) as endpoint:
            results = list(endpoint.run([question(0), question(1)]))
        assert all(isinstance(reply, Reply) and reply.text.startswith("echo soalan") for _, reply in results)
        assert endpoint.counts["requests"] == 2 - left
        assert len([json.loads(line) for line in path.read_bytes().splitlines()]) == 2


def test_a_log_cut_off_anywhere_opens_with_its_whole_lines(tmp_path: Path) -> None:
    with RequestLog(tmp_path) as log:
        for number in range(3):
            log.answered(question(number), Reply(text=f"jawapan {number}\n", cost=0.5))
    path = tmp_path / "requests.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        with RequestLog(tmp_path) as log:
            assert (len(log), log.spent, path.stat().st_size) == (lines, 0.5 * lines, whole[:size].rfind(b"\n") + 1)
            texts = [reply.text for n in range(3) if (reply := log.find(question(n)))]
            assert texts == [f"jawapan {n}\n" for n in range(lines)]


@pytest.mark.parametrize("damage", [b"x", b"\xff", b'"', b"}"])
def test_a_damaged_line_is_asked_again(
    server: EndpointServer, config: MakeConfig, tmp_path: Path, damage: bytes
) -> None:
    with Endpoint(config(), log=tmp_path) as endpoint:
        list(endpoint.run([question(n) for n in range(3)]))
    path = tmp_path / "requests.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    middle = lines[1].index(b'"reply"') + 12
    lines[1] = lines[1][:middle] + damage + lines[1][middle + 1 :]
    path.write_bytes(b"".join(lines))
    with Endpoint(config(), log=tmp_path) as endpoint:
        results = list(endpoint.run([question(n) for n in range(3)]))
    assert len(results) == 3 and endpoint.counts["requests"] == 1


def test_another_server_of_the_same_model_shares_the_answers(config: MakeConfig, tmp_path: Path) -> None:
    with EndpointServer() as first, Endpoint(config(base_url=first.url), log=tmp_path) as endpoint:
        list(endpoint.run([question(0)]))
    with EndpointServer() as second, Endpoint(config(base_url=second.url), log=tmp_path) as endpoint:
        ((_, reply),) = endpoint.run([question(0)])
        assert isinstance(reply, Reply) and reply.cached and second.asked == []


def test_whatever_decides_the_answer_is_in_the_key() -> None:
    base = {"max_tokens": 9, "temperature": 0.5}
    keys = [
        chat("m", [("user", "a")], **base).key,
        chat("n", [("user", "a")], **base).key,
        chat("m", [("user", "b")], **base).key,
        chat("m", [("system", "a")], **base).key,
        chat("m", [("user", "a")], max_tokens=8, temperature=0.5).key,
        chat("m", [("user", "a")], max_tokens=9, temperature=0.6).key,
        chat("m", [("user", "a")], **base, top_p=1).key,
        embeddings("m", ["a"]).key,
        embeddings("m", ["a", "b"]).key,
        embeddings("m", ["ab"]).key,
        embeddings("m", ["a"], dimensions=4).key,
    ]
    assert len(set(keys)) == len(keys)
    assert chat("m", [("user", "a")], label="other", temperature=0.5, max_tokens=9).key == keys[0]


def test_two_processes_write_files_of_their_own_and_read_both(tmp_path: Path) -> None:
    first, second = RequestLog(tmp_path), RequestLog(tmp_path)
    assert first.path != second.path
    first.answered(question(0), Reply(text="satu", cost=0.25))
    second.answered(question(1), Reply(text="dua", cost=0.5))
    first.close()
    second.close()
    with RequestLog(tmp_path) as log:
        assert len(log) == 2 and log.spent == 0.75
        found = [log.find(question(n)) for n in range(3)]
        assert [reply and reply.text for reply in found] == ["satu", "dua", None]


def test_a_log_that_nobody_closed_frees_its_file(tmp_path: Path) -> None:
    for number in range(3):
        log = RequestLog(tmp_path)
        log.answered(question(number), Reply(text="satu"))
        del log
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]


def test_logs_of_two_names_do_not_meet(tmp_path: Path) -> None:
    with RequestLog(tmp_path) as first, RequestLog(tmp_path, name="vectors") as second:
        first.answered(question(0), Reply(text="satu", cost=0.25))
        first.failed(question(1), "refused", "no")
        second.forget_replies()
        assert second.find(question(0)) is None
    with RequestLog(tmp_path) as log:
        assert len(log) == 1 and log.spent == 0.25


def test_a_file_that_another_process_is_writing_is_left_whole(tmp_path: Path) -> None:
    with RequestLog(tmp_path) as first:
        first.answered(question(0), Reply(text="satu"))
        with (tmp_path / "requests.jsonl").open("ab") as stream:
            stream.write(b'{"key": "half')  # as if it were in the middle of a line
        RequestLog(tmp_path).close()
        assert (tmp_path / "requests.jsonl").read_bytes().endswith(b"half")


def test_forgetting_keeps_what_was_spent(tmp_path: Path) -> None:
    with RequestLog(tmp_path) as log:
        log.answered(question(0), Reply(text="satu", cost=0.25))
        log.lost(question(1), 0.5, "cut")
        log.forget_replies()
        assert log.find(question(0)) is None
        log.answered(question(2), Reply(text="dua", cost=1.0))
        assert log.find(question(2)) == Reply(text="dua", cached=True)
    with RequestLog(tmp_path) as log:
        assert log.spent == 1.75 and len(log) == 1


def test_vectors_come_back_bit_by_bit(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    request = embeddings("m", ["a", "b", "c"])
    with RequestLog(tmp_path) as log:
        log.answered(request, Reply(vectors=vectors))
    with RequestLog(tmp_path) as log:
        reply = log.find(request)
        assert reply is not None and reply.vectors is not None
        assert reply.vectors.dtype == np.float32 and np.array_equal(reply.vectors, vectors)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="not allowed"):
        RequestLog(tmp_path / "closed" / "log")


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RequestLog(tmp_path) as log:
        log.answered(question(0), Reply(text="satu"))
        real, calls = os.write, 0

        def full(file: int, data: bytes) -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                return real(file, bytes(data)[:20])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(UserError, match="full"):
            log.answered(question(1), Reply(text="dua"))
        monkeypatch.undo()
        log.answered(question(2), Reply(text="tiga"))
    with RequestLog(tmp_path) as log:
        found = [log.find(question(n)) for n in range(3)]
        assert [reply and reply.text for reply in found] == ["satu", None, "tiga"]
