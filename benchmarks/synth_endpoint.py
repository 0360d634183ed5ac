"""The endpoint client: requests a second, its CPU time a request, and what the request log saves.

    python benchmarks/synth_endpoint.py [--quick] [--out benchmarks/results/synth_endpoint.md]

A local server that takes 50 ms for every answer, in a process of its own (`tests/data_prep/endpoint_server.py`). In
turns: our client at several concurrencies, with its log on disk, and the bare openai client with a semaphore and
`asyncio.gather`, which has no log, no accounting and no limit. Ideal is concurrency / 50 ms. CPU time is the client's
alone and is disturbed least by a busy machine. Then the same requests again, out of the log.
`--quick` sends fewer requests, prints, and writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _facts import REPO, RESULTS, machine_lines, table, versions

from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.request import Request, chat

DELAY_S = 0.05
CONCURRENCIES = (1, 4, 16, 64)
SERVER = f"""
import sys
from tests.data_prep.endpoint_server import EndpointServer
with EndpointServer(delay_s={DELAY_S}) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def running_server() -> Iterator[str]:
    """The address of a server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


def requests(count: int, salt: str) -> list[Request]:
    """Requests of about 200 tokens."""
    passage = "Sungai itu mengalir ke muara. " * 25
    return [chat("test-model", [("user", f"{salt} {n}: {passage}")], max_tokens=64) for n in range(count)]


def ours(url: str, asked: list[Request], concurrency: int, log: Path) -> None:
    """Our client."""
    config = EndpointConfig(base_url=url, model="test-model", concurrency=concurrency)
    with Endpoint(config, log=log) as endpoint:
        answered = sum(1 for _ in endpoint.run(asked))
    assert answered == len(asked)


def bare(url: str, asked: list[Request], concurrency: int, _: Path) -> None:
    """The openai client and a semaphore."""
    import openai

    async def run() -> None:
        slots = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            create: Any = client.chat.completions.create

            async def one(request: Request) -> None:
                async with slots:
                    await create(**request.body)

            await asyncio.gather(*(one(request) for request in asked))

    asyncio.run(run())


def measured(side: Any, url: str, count: int, concurrency: int, salt: str, log: Path) -> tuple[float, float]:
    """Requests a second, and CPU milliseconds a request."""
    asked = requests(count, salt)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    side(url, asked, concurrency, log)
    return count / (time.perf_counter() - wall_s), 1000 * (time.process_time() - cpu_s) / count


def main() -> None:
    """Take the figures, print them, and write them unless `--quick`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "synth_endpoint.md")
    options = parser.parse_args()
    turns, a_slot = (1, 10) if options.quick else (5, 60)
    load_before = os.getloadavg()[0]
    rows: list[list[str]] = []
    with running_server() as url, tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch)
        for side in (ours, bare):  # imports and the first connection are no part of a figure
            measured(side, url, 2, 1, "warm", log)
        for concurrency in CONCURRENCIES[:3] if options.quick else CONCURRENCIES:
            count, taken = a_slot * concurrency, {}
            for turn in range(turns):
                for side in (ours, bare):
                    salt = f"{side.__name__} {concurrency} {turn}"
                    taken[side.__name__, turn] = measured(side, url, count, concurrency, salt, log)
            rate, cpu = (
                {name: median(taken[name, turn][part] for turn in range(turns)) for name in ("ours", "bare")}
                for part in (0, 1)
            )
            rows.append(
                [
                    f"{concurrency}", f"{concurrency / DELAY_S:,.0f}", f"{rate['ours']:,.1f}", f"{rate['bare']:,.1f}",
                    f"{rate['ours'] / rate['bare']:.2f}", f"{cpu['ours']:.2f}", f"{cpu['bare']:.2f}",
                ]
            )  # fmt: skip
        known = a_slot * 16
        again, cpu_again = measured(ours, url, known, 16, "ours 16 0", log)
    head = ["concurrency", "ideal /s", "ours /s", "bare openai /s", "ratio", "ours CPU ms", "bare CPU ms"]
    text = "\n\n".join(
        [
            "# The endpoint client",
            f"Requests a second against a server that takes {DELAY_S * 1000:.0f} ms; medians of {turns} turns of "
            f"{a_slot} requests a slot. Ours writes its log and keeps accounts, the bare client does neither.",
            table(head, rows),
            f"The same requests again, out of the log: {again:,.0f} a second, {cpu_again:.2f} ms of CPU each.",
            "\n".join(
                machine_lines(
                    threads=1, load_before=load_before, packages=versions(sys.executable, ["openai", "httpx2"])
                )
            ),
        ]
    )
    print(text)
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
