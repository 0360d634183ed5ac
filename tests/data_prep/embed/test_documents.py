"""Documents in parts: the same vectors whoever computes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.documents import embed_documents
from data_prep.embed.store import StoredVectors, embed_texts
from data_prep.embed.teacher import TeacherConfig, fit_teacher, identity, load_teacher
from data_prep.errors import UserError
from data_prep.fanout import Serial
from data_prep.files import content_id
from data_prep.progress import Progress
from data_prep.text_store import build_text_store
from launch.fanout import LocalFanout

REPO = Path(__file__).resolve().parents[3]
Documents = Callable[[Path, list[str]], Path]


class Scattered:
    """A fan-out for two that computes here, last part first; counts its parts."""

    workers = 2

    def __init__(self) -> None:
        self.parts = 0

    def map(self, function: str, parts: Any, **more: Any) -> Any:
        self.parts += len(parts)
        return Serial().map(function, parts[::-1], **more)[::-1]


@pytest.fixture
def corpus(tmp_path: Path, topics: Any, write_documents: Documents) -> tuple[Path, Path, list[str]]:
    """Folders of documents and of a fitted teacher, and the texts; some occur twice."""
    texts = [*topics(300), *topics(40)]
    documents = write_documents(tmp_path / "documents", texts)
    fit_teacher(TeacherConfig(dimension=12), texts, out=tmp_path / "teacher", seed=0, progress=Progress())
    return documents, tmp_path / "teacher", texts


def test_parts_give_what_one_pass_gives(tmp_path: Path, corpus: Any) -> None:
    documents, teacher, texts = corpus
    plain = embed_documents(documents, teacher, role="passage", folder=tmp_path / "a", rows_per_file=50)
    parts = embed_documents(
        documents,
        teacher,
        role="passage",
        folder=tmp_path / "b",
        rows_per_file=50,
        fanout=Scattered(),
        cache=tmp_path / "cache",
        scratch=tmp_path / "scratch",
    )
    assert plain.rows == 340 and plain.fingerprint == parts.fingerprint
    assert plain.kind.teacher == identity(teacher)["hash"]
    assert not (tmp_path / "a" / ".scratch").exists() and (tmp_path / "scratch" / "texts").exists()
    assert plain.ids.tobytes().hex() == "".join(content_id(text) for text in texts)
    # and again: no part is computed, from the records or from the cache
    fanout = Scattered()
    again = embed_documents(
        documents, teacher, role="passage", folder=tmp_path / "c", cache=tmp_path / "cache", fanout=fanout,
        scratch=tmp_path / "other", rows_per_file=50,
    )  # fmt: skip
    assert again.fingerprint == plain.fingerprint and fanout.parts == 7


@pytest.mark.slow
def test_processes_give_what_one_gives(tmp_path: Path, corpus: Any) -> None:
    documents, teacher, _ = corpus
    serial = embed_documents(documents, teacher, role="passage", folder=tmp_path / "a", rows_per_file=64)
    shared = embed_documents(
        documents, teacher, role="passage", folder=tmp_path / "b", rows_per_file=64, fanout=LocalFanout(2)
    )
    assert serial.fingerprint == shared.fingerprint


def test_first_lines_and_chosen_rows(tmp_path: Path, corpus: Any) -> None:
    documents, teacher, texts = corpus
    store = build_text_store(documents, tmp_path / "texts", progress=Progress())
    rows = np.random.default_rng(0).permutation(340)[:120]
    found = [
        embed_documents(
            documents,
            teacher,
            role="query",
            folder=tmp_path / str(number),
            text="first_line",
            rows=rows,
            texts=store,
            fanout=fanout,
            rows_per_file=50,
        )
        for number, fanout in enumerate((None, Scattered()))
    ]
    assert found[0].fingerprint == found[1].fingerprint
    loaded = fit_teacher(TeacherConfig(dimension=12), texts, out=tmp_path / "t", seed=0, progress=Progress())
    items = [(content_id(texts[row]), texts[row].partition("\n")[0]) for row in rows.tolist()]
    expected = embed_texts(items, loaded, role="query", folder=tmp_path / "x", rows_per_file=50)
    assert expected.fingerprint == found[0].fingerprint


def test_a_file_that_was_spoiled_after_its_part_ended(tmp_path: Path, corpus: Any) -> None:
    documents, teacher, _ = corpus
    more: dict[str, Any] = {"role": "passage", "folder": tmp_path / "v", "scratch": tmp_path / "s", "rows_per_file": 50}
    good = embed_documents(documents, teacher, fanout=Scattered(), **more).fingerprint
    (tmp_path / "v" / "part-00002.f16").write_bytes(b"x")
    (tmp_path / "v" / "part-00003.ids").unlink()
    with pytest.raises(UserError, match=r"part-00002\.f16"):
        StoredVectors(tmp_path / "v")
    assert embed_documents(documents, teacher, fanout=Scattered(), **more).fingerprint == good


def test_a_teacher_that_changed_meanwhile(tmp_path: Path, corpus: Any, topics: Any) -> None:
    documents, teacher, _ = corpus
    told = (teacher / "identity.json").read_text()
    fit_teacher(TeacherConfig(dimension=10), topics(200), out=teacher, seed=0, progress=Progress())
    (teacher / "identity.json").write_text(told)
    with pytest.raises(UserError, match="changed during embedding"):
        embed_documents(documents, teacher, role="passage", folder=tmp_path / "v", fanout=Scattered(), rows_per_file=50)


def test_a_kill_changes_nothing_even_where_batches_do(tmp_path: Path, plain_teacher: Any) -> None:
    """A teacher whose rows depend on their batch, as a transformer's do in the last bits, and texts in several parts:
    what the first life put into the cache must not be found by the second."""

    class Moody(plain_teacher):  # type: ignore[misc, valid-type]
        left = 99

        def embed(self, texts: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            rows = super().embed(texts, **more)
            rows[:, 0] += 1e-4 * len(texts)
            return rows

    items = [(f"id {n}", f"teks {n % 90 if n < 150 else n}") for n in range(200)]
    items[:0] = [("id", "teks 1")] * 11
    whole = embed_texts(
        items, Moody(normalised=False), role="passage", folder=tmp_path / "a", cache=tmp_path / "one", rows_per_file=40
    )
    teacher = Moody(normalised=False)
    teacher.left = 3
    with pytest.raises(KeyboardInterrupt):
        embed_texts(items, teacher, role="passage", folder=tmp_path / "b", cache=tmp_path / "two", rows_per_file=40)
    resumed = embed_texts(
        items, Moody(normalised=False), role="passage", folder=tmp_path / "b", cache=tmp_path / "two", rows_per_file=40
    )
    assert resumed.fingerprint == whole.fingerprint


def test_an_endpoint_as_teacher(tmp_path: Path, topics: Any, write_documents: Documents) -> None:
    """From the recipe's table to vectors on disk; a second corpus is asked for what is new in it alone."""
    from tests.data_prep.endpoint_server import EndpointServer

    texts = topics(120)
    documents, cache = write_documents(tmp_path / "documents", texts[:100]), tmp_path / "cache"
    with EndpointServer() as server:
        endpoint = {"base_url": server.url, "model": server.model, "backoff_s": 0.01}
        config = TeacherConfig.model_validate(
            {"kind": "endpoint", "endpoint": endpoint, "passage_prefix": "teks: ", "normalise": False}
        )
        fit_teacher(config, [], out=tmp_path / "teacher", seed=0, progress=Progress())
        told = identity(tmp_path / "teacher")
        assert (told["kind"], told["dimension"], told["normalised"]) == ("endpoint", server.dimension, False)
        more: dict[str, Any] = {"role": "passage", "cache": cache, "fanout": Scattered(), "rows_per_file": 32}
        stored = embed_documents(documents, tmp_path / "teacher", folder=tmp_path / "a", **more)
        assert more["fanout"].parts == 0  # asked from here, with a concurrency of its own
        asked = {text for one in server.asked for text in one.body["input"]}
        assert {f"teks: {text}" for text in texts[:100]} <= asked
        again = load_teacher(tmp_path / "teacher")
        assert np.array_equal(stored.raw(0, 9), again.embed(texts[:9], role="passage").astype(np.float16))
        server.asked.clear()
        write_documents(tmp_path / "more", texts[10:])
        embed_documents(tmp_path / "more", tmp_path / "teacher", folder=tmp_path / "b", **more)
        asked = {text for one in server.asked for text in one.body["input"]}
        assert asked - {"rumpun"} == {f"teks: {text}" for text in texts[100:]}
        server.dimension = 5
        with pytest.raises(UserError, match="a vector of 5 numbers: must have the 8 numbers"):
            embed_documents(documents, tmp_path / "teacher", folder=tmp_path / "c", role="passage")


SHARED = """
import sys
from pathlib import Path
from data_prep.embed.documents import embed_documents
from launch.fanout import LocalFanout
documents, teacher, folder, scratch = map(Path, sys.argv[1:])
embed_documents(documents, teacher, role="passage", folder=folder, scratch=scratch, fanout=LocalFanout(2),
                rows_per_file=100)
"""


@pytest.mark.slow
def test_killed_processes_are_taken_up(tmp_path: Path, topics: Any, write_documents: Documents) -> None:
    """SIGKILL of whoever deals the parts out; files that were whole are the same files at the end."""
    texts = topics(6000)
    documents, teacher = write_documents(tmp_path / "documents", texts), tmp_path / "teacher"
    fit_teacher(TeacherConfig(dimension=32), texts[:500], out=teacher, seed=0, progress=Progress())
    folder, scratch = tmp_path / "killed", tmp_path / "scratch"
    command = [sys.executable, "-c", SHARED, *map(str, (documents, teacher, folder, scratch))]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO)})
    deadline = time.monotonic() + 120
    while len(list(folder.glob("part-*.json"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its workers end with the part they are at
    whole = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.json")}
    assert 3 <= len(whole) < 60 and not (folder / "manifest.json").exists()
    shared = {"role": "passage", "rows_per_file": 100}
    found = embed_documents(documents, teacher, folder=folder, scratch=scratch, fanout=LocalFanout(2), **shared)  # type: ignore[arg-type]
    assert {name: (folder / name).stat().st_mtime_ns for name in whole} == whole
    plain = embed_documents(documents, teacher, folder=tmp_path / "plain", **shared)  # type: ignore[arg-type]
    assert found.fingerprint == plain.fingerprint


def test_each_process_takes_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from data_prep.embed import documents

    monkeypatch.setattr(documents, "_HELD", [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # a lock belongs to an open file, so that three calls here are as three processes
    found = [documents._device(tmp_path) for _ in range(3)]
    assert found[:2] == ["cuda:0", "cuda:1"] and found[2] in found[:2]
    for stream in documents._HELD:
        stream.close()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert documents._device(tmp_path) is None
