from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.shards import Shards, ShardWriter


def _write(folder: Path, texts: list[str], *, rows_per_file: int = 3) -> Path:
    with ShardWriter(folder, "documents", rows_per_file=rows_per_file) as writer:
        writer.extend({"id": str(n), "text": t, "source": "s", "language": "ms"} for n, t in enumerate(texts))
    return folder


def test_round_trip_over_several_files(tmp_path: Path) -> None:
    texts = [f"teks {n} 马来 தமிழ்" for n in range(8)]
    shards = Shards(_write(tmp_path / "s", texts), "documents")
    assert len(list((tmp_path / "s").glob("*.parquet"))) == 3
    assert len(shards) == 8 and shards.column("text") == texts
    assert [row["text"] for row in shards] == texts
    assert [row["id"] for row in shards.take([7, 0, 7])] == ["7", "0", "7"]


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    one, two = (_write(tmp_path / name, ["a", "b", "c", "d"]) for name in "xy")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    assert (
        Shards(one, "documents").fingerprint != Shards(_write(tmp_path / "z", ["a", "b", "c"]), "documents").fingerprint
    )


def test_numpy_rows_in_token_shards(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "tokens") as writer:
        writer.append({"input_ids": np.arange(5, dtype=np.int32), "document_starts": np.array([0, 3], dtype=np.int32)})
    assert list(Shards(tmp_path, "tokens")) == [
        {"input_ids": [0, 1, 2, 3, 4], "document_starts": [0, 3], "source": None}
    ]


def test_empty_folder_of_shards(tmp_path: Path) -> None:
    assert list(Shards(_write(tmp_path / "s", []), "documents")) == []
    assert Shards(_write(tmp_path / "t", ["a"]), "documents").take([]) == []


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    folder = _write(tmp_path / "s", ["satu", "dua"])
    part = folder / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(UserError, match=r"part-00000.parquet.*checksum differs.*delete"):
        Shards(folder, "documents")


def test_missing_part_wrong_kind_wrong_schema_no_manifest(tmp_path: Path) -> None:
    folder = _write(tmp_path / "s", ["satu", "dua"])
    with pytest.raises(UserError, match=r"holds 'documents' shards, 'pairs' are needed"):
        Shards(folder, "pairs")
    manifest = json.loads((folder / "manifest.json").read_text())
    for content, says in (({**manifest, "schema": 99}, "schema version 99"), ([], "is not a shard manifest")):
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=says):
            Shards(folder, "documents")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "part-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00000.parquet: is missing"):
        Shards(folder, "documents")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="is not a shard folder"):
        Shards(folder, "documents")


def test_a_failed_writer_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "s", "documents", rows_per_file=1) as writer:
        writer.append({"id": "1", "text": "x", "source": "s", "language": "ms"})
        raise RuntimeError
    with pytest.raises(UserError, match="is not a shard folder"):
        Shards(tmp_path / "s", "documents")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_a_user_error_and_keeps_nothing_half_written(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 100_000), dtype=np.uint8)
    texts = ["".join(map(chr, row + 32)) for row in noise]
    with pytest.raises(UserError, match=r"the disk .* is full") as caught:
        _write(small_disk / "s", texts, rows_per_file=1)
    assert "--runs" in str(caught.value)
    assert not (small_disk / "s" / "manifest.json").exists()
    for part in (small_disk / "s").glob("part-*"):  # those that were finished are whole
        assert part.read_bytes()[-4:] == b"PAR1"


def test_any_stretch_of_rows_reads_as_the_whole_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.shards._ROW_GROUP", 3)
    shards = Shards(_write(tmp_path / "s", [f"t{n}" for n in range(23)], rows_per_file=8), "documents")
    whole = list(shards)
    for start in range(25):
        for stop in range(start, 26):
            assert list(shards.rows_between(start, stop)) == whole[start:stop]
