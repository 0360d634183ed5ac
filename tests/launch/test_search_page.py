"""The page answers this machine, at the right address, and nobody else; what it shows is what the vectors say."""

from __future__ import annotations

import html
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.progress import Progress
from launch.search.index import Index, make_index
from launch.search.search_command import search_command, show_page
from launch.search.server import PageServer, serve
from launch.search.view import MAX_QUERY, page, read_asked
from tests.browser import laid_out, needs_browser

EVIL = '<script>alert(1)</script> & "b" {{ 7*7 }}'
TEXTS = ["hujan lebat petang ini", "harga ikan naik", f"ikan bakar murah {EVIL}", "guru sekolah"]


class Letters:
    """Counts letters: a model whose cosines a test can work out by hand. `only` hides the other letters from it."""

    dimension = 26

    def __init__(self, name: str = "letters", only: str = "abcdefghijklmnopqrstuvwxyz") -> None:
        self.name, self.only = name, only

    def embed(self, texts: Sequence[str], *, role: str, progress: Progress | None = None) -> NDArray[np.float32]:
        if "break" in texts:
            raise RuntimeError("out of memory")
        found = np.array(
            [[t.lower().count(chr(97 + i)) * (chr(97 + i) in self.only) for i in range(26)] for t in texts]
        )
        if "nan" in texts:
            found = found * np.nan
        return (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def indexes(*models: Letters) -> list[Index]:
    return [make_index(model.name, model, TEXTS, Progress()) for model in models]


@pytest.fixture
def server() -> Iterator[PageServer]:
    two = indexes(Letters("first <b>"), Letters("second", only="ks"))
    made = PageServer(0)
    made.answer = lambda fields: page(read_asked(fields, k=2), two, TEXTS, about="4 texts")
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


Ask = Callable[..., tuple[int, str, dict[str, str]]]


@pytest.fixture
def ask(server: PageServer) -> Ask:
    def get(
        path: str | None = None, *, method: str = "GET", host: str | None = None, **fields: str
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        where = f"/{server.token}/" if path is None else path
        given = {} if host is None else {"Host": host}
        connection.request(method, f"{where}?{urlencode(fields)}" if fields else where, headers=given)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body, {k.lower(): v for k, v in answer.getheaders()}

    return get


def test_two_models_side_by_side_show_the_cosines(ask: Ask) -> None:
    status, body, _ = ask(q="ikan murah")
    assert status == 200
    for name, only in (("first <b>", "abcdefghijklmnopqrstuvwxyz"), ("second", "ks")):
        side = body.split(f"<h2>{html.escape(name)}</h2>")[1].split("</section>")[0]

        def counted(text: str, only: str = only) -> list[int]:
            return [text.lower().count(letter) for letter in only]

        expected = []
        for row, text in enumerate(TEXTS):
            a, b = counted("ikan murah"), counted(text)
            norm = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
            expected.append((-(sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0), row))
        best = sorted(expected)[:2]
        assert [float(s) for s in re.findall(r'class="score">([\d.]+)<', side)] == pytest.approx(
            [-s for s, _ in best], abs=2e-4
        )
        shown = [html.unescape(t) for t in re.findall(r'<p class="text">(.*?)</p>', side, re.DOTALL)]
        assert shown == [TEXTS[row] for _, row in best]
    ranks = [int(r) for r in re.findall(r"rank (\d) there", body)]
    assert len(ranks) == 4 and max(ranks) <= 4
    assert f"Both models show {sum(r <= 2 for r in ranks[:2])} of the 2 texts" in body


def test_what_comes_from_outside_is_escaped_and_nothing_is_loaded(ask: Ask) -> None:
    _, body, headers = ask(q=f"ikan bakar {EVIL}", k="4")
    assert "<script" not in body and "first <b>" not in body and "{{ 7*7 }}" in body
    assert body.count(html.escape(EVIL)[:20]) >= 3  # the title, the form and the text
    assert not re.search(r"(src|href)=", body)
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
    assert body.count("<li>") == 8
    for tag in ("section", "ol", "li", "p", "div", "form", "main"):
        assert len(re.findall(rf"<{tag}\b", body)) == len(re.findall(rf"</{tag}>", body)), tag


def test_only_this_machine_with_the_token(ask: Ask, server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example", "", "[::1"):
        status, body, _ = ask(host=host, q="ikan")
        assert status in (400, 421) and TEXTS[1] not in body, host
    assert ask(host="localhost:9999", q="ikan")[0] == 200  # through a tunnel the port is another
    for path in ("/", "/?q=ikan", f"/{server.token}x/", f"/{server.token[:-1]}/", "/../etc/passwd", "/%ff"):
        status, body, _ = ask(path)
        assert status == 404 and server.token not in body, path


def test_a_request_that_is_not_one_of_ours(ask: Ask) -> None:
    assert ask(method="POST")[0] == 501
    status, body, headers = ask(method="HEAD", q="ikan")
    assert (status, body) == (200, "") and int(headers["content-length"]) > 1000
    assert "Python" not in headers["server"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"q": "ikan", "k": "0"}, "a number from 1 to 100"),
        ({"q": "ikan", "k": "²"}, "a number from 1 to 100"),
        ({"q": "ikan", "k": "9" * 5000}, "a number from 1 to 100"),
        ({"q": "x" * (MAX_QUERY + 1)}, "4,000 characters; this one has 4,001"),
        ({"q": "nan"}, "numbers that are not finite"),
    ],
)
def test_mistakes_in_the_form_are_told_on_the_page(ask: Ask, fields: dict[str, str], words: str) -> None:
    status, body, _ = ask(**fields)
    assert status == 200 and words in body and "<section" not in body


def test_a_model_that_fails_does_not_end_the_page(ask: Ask, capfd: pytest.CaptureFixture[str]) -> None:
    status, body, _ = ask(q="break")
    assert status == 500 and "the terminal says why" in body and "out of memory" not in body
    assert ask(q="ikan")[0] == 200
    assert "out of memory" in capfd.readouterr().err


def test_nothing_asked_shows_the_form_alone() -> None:
    made = page(read_asked({}, k=7), indexes(Letters()), TEXTS, about="4 texts")
    assert 'value="7"' in made and "<section" not in made and "4 texts; letters" in made
    one = page(read_asked({"q": [" guru "], "k": ["50"]}, k=7), indexes(Letters()), TEXTS, about="4 texts")
    assert one.count("<li>") == 4 and "there</span>" not in one and "Both models" not in one


@needs_browser
def test_nothing_stands_out_on_a_phone(tmp_path: Path) -> None:
    long = "w" * 120
    texts = [f"{long} hujan", "ikan", f"guru {long}"]
    two = [make_index(m.name, m, texts, Progress()) for m in (Letters(f"models/{long}"), Letters("second", only="ks"))]
    made = page(read_asked({"q": [f"ikan {long}"]}, k=3), two, texts, about=f"3 texts of {long}.txt")
    (tmp_path / "search.html").write_text(made)
    for told in laid_out(tmp_path, [("search.html", 360), ("search.html", 1280)]):
        assert told["scroll"] <= told["width"] and told["out"] == [], told


def test_a_model_without_finite_vectors_is_refused() -> None:
    with pytest.raises(UserError, match="1 of 1 texts numbers that are not finite, the first: 'nan'"):
        make_index("letters", Letters(), ["nan"], Progress())


def test_a_port_in_use_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("satu\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: is in use. Fix: give another"):
            show_page("/no/such/model", tmp_path / "texts.txt", against=None, k=5, port=port)
    with pytest.raises(UserError, match="is no folder"):
        show_page("/no/such/model", tmp_path / "texts.txt", against=None, k=5, port=port)
    PageServer(port).server_close()  # the failure gave it back


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    for given, words in (
        ({"port": 8000}, "--port 8000: needs the page"),
        ({"against": "m"}, "--against m: needs the page"),
        ({"page": True, "query": "x"}, "--query: answers in the terminal"),
        ({"page": True, "k": 0}, "--k 0: must be at least 1"),
        ({"page": True, "k": 101}, "--k 101: must be at most 100"),
    ):
        with pytest.raises(UserError, match=words):
            search_command("m", texts, **given)


def test_interrupt_ends_it_cleanly(repo: Path) -> None:
    code = (
        "from launch.search.server import PageServer, serve\n"
        "s = PageServer(0); s.answer = lambda fields: 'yes'\nprint(s.url, flush=True)\nserve(s)\nprint('after')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        port, path = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]{24}/)", url).groups()  # type: ignore[union-attr]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().read() == b"yes"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "after\n")
    assert "the page has ended" in err and "Traceback" not in err


def test_serve_gives_the_port_back() -> None:
    server = PageServer(0)
    threading.Timer(0.1, server.shutdown).start()
    serve(server)
    PageServer(server.server_port).server_close()
