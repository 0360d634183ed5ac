"""MDS folders written by MosaicML's own library (see mds/README.md) and by hand, whole and damaged."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.pairs.mds import is_mds, read_mds

FIXTURES = Path(__file__).parent / "mds"
ROWS = json.loads((FIXTURES / "rows.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "count"), [("plain", 7), ("zstd", 7), ("gz", 3)])
def test_rows_are_those_that_their_library_reads(name: str, count: int) -> None:
    assert is_mds(FIXTURES / name)
    read = list(read_mds(FIXTURES / name))
    assert [row for _, row in read] == ROWS[:count]
    assert len({where for where, _ in read}) == count
    assert read[0][0].endswith(", sample 0")


def test_every_encoding_of_a_text_or_number_and_no_array() -> None:
    told = json.loads((FIXTURES / "mixed.json").read_text(encoding="utf-8"))
    assert [{**row, "e_bytes": row["e_bytes"].decode()} for _, row in read_mds(FIXTURES / "mixed")] == told


def test_pickles_are_not_loaded() -> None:
    with pytest.raises(UserError, match="column 'pos': is pickled"):
        list(read_mds(FIXTURES / "pickled"))


def _write(folder: Path, rows: list[dict[str, str]], **told: Any) -> None:
    """Another writer of the layout: text columns only."""
    names = sorted(rows[0])
    samples = []
    for row in rows:
        values = [row[n].encode() for n in names]
        samples.append(b"".join(struct.pack("<I", len(v)) for v in values) + b"".join(values))
    settings = b"{}"
    offsets = [4 + 4 * (len(rows) + 1) + len(settings)]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample))
    data = struct.pack(f"<{len(rows) + 2}I", len(rows), *offsets) + settings + b"".join(samples)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shard.00000.mds").write_bytes(data)
    shard = {
        "column_names": names, "column_encodings": ["str"] * len(names), "column_sizes": [None] * len(names),
        "compression": None, "format": "mds", "hashes": [], "samples": len(rows), "version": 2, "zip_data": None,
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}},
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [shard | told]}))


def test_texts_that_could_be_mistaken_for_lengths(tmp_path: Path) -> None:
    rows = [{"query": "", "text": "\0\0\0\1" * 9}, {"query": "நீ" * 300, "text": ""}]
    _write(tmp_path, rows)
    assert [row for _, row in read_mds(tmp_path)] == rows


def test_empty_shards_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"version": 2, "shards": []}')
    assert list(read_mds(tmp_path)) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "zstd", tmp_path / "zstd"))


def test_a_changed_byte_is_found_before_a_row_is_read(copy: Path) -> None:
    path = copy / "shard.00001.mds.zstd"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard\.00001\.mds\.zstd: its sha1 differs"):
        list(read_mds(copy))
    with pytest.raises(UserError, match=r"shard\.00001"):  # the stream's own checks, or the columns' sizes
        list(read_mds(copy, verify=False))


def test_hashes_are_compared_one_by_one(copy: Path) -> None:
    index = json.loads((copy / "index.json").read_text())
    index["shards"][0]["zip_data"]["hashes"] = {"xxh64": "0" * 16, "unheard_of": "f"}
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="its xxh64 differs"):
        list(read_mds(copy))


def test_cut_off_missing_and_unpacked_shards(copy: Path) -> None:
    path = copy / "shard.00002.mds.zstd"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"bytes, index\.json says"):
        list(read_mds(copy))
    path.unlink()
    with pytest.raises(UserError, match=r"is missing, but index\.json lists it"):
        list(read_mds(copy))
    import zstandard

    (copy / "shard.00002.mds").write_bytes(zstandard.ZstdDecompressor().decompress(whole))
    assert [row for _, row in read_mds(copy)] == ROWS


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": "json"}, "'json', version 2"),
        ({"version": 3}, "version 3"),
        ({"samples": 3}, "holds 2 samples, index.json says 3"),
        ({"column_names": ["query"]}, "more columns than it describes"),
        ({"raw_data": None}, "lacks a fact"),
        ({"column_sizes": [None, 2]}, "its columns need"),
        ({"column_encodings": ["str", "json"]}, "column 'text' cannot be decoded"),
        ({"compression": "br:11", "zip_data": {"basename": "shard.00000.mds", "bytes": 1}}, "compressed with 'br'"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    _write(tmp_path, [{"query": "satu", "text": "dua tiga"}, {"query": "a", "text": "b"}], **changed)
    with pytest.raises(UserError, match=says):
        list(read_mds(tmp_path))


def test_offsets_that_fit_no_file(tmp_path: Path) -> None:
    _write(tmp_path, [{"query": "satu"}, {"query": "dua"}])
    path = tmp_path / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 1 << 31)
    path.write_bytes(data)
    with pytest.raises(UserError, match="offsets that fit no file"):
        list(read_mds(tmp_path))


def test_names_in_the_index_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    _write(tmp_path / "in", [{"query": "satu"}])
    index = json.loads((tmp_path / "in" / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../secret.mds"
    (tmp_path / "in" / "index.json").write_text(json.dumps(index))
    (tmp_path / "secret.mds").write_bytes((tmp_path / "in" / "shard.00000.mds").read_bytes())
    with pytest.raises(UserError, match=r"in/secret\.mds: is missing"):
        list(read_mds(tmp_path / "in"))


def test_other_json_is_no_mds_index(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"shards": [1]}', '{"other": 1}'):
        (tmp_path / "index.json").write_text(text)
        assert not is_mds(tmp_path)
    with pytest.raises(UserError, match="lists no shards"):
        list(read_mds(tmp_path))


@pytest.mark.parametrize("name", ["plain", "zstd", "mixed", "gz"])
def test_damage_anywhere_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    path = next(folder.glob("shard.00000.*"))
    whole, index = path.read_bytes(), json.loads((folder / "index.json").read_text())
    refused = 0
    for number in range(300):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data if number % 3 else data[: rng.randrange(len(data))])
        if number % 4 == 0:
            told = json.loads(json.dumps(index))
            shard = told["shards"][0]
            shard[rng.choice(list(shard))] = rng.choice([None, 3, -1, 1e9, "x", [], {}, [1], {"bytes": "x"}, True])
            (folder / "index.json").write_text(json.dumps(told))
        try:
            for _ in read_mds(folder, verify=number % 2 == 0):
                pass
        except UserError:
            refused += 1
        (folder / "index.json").write_text(json.dumps(index))
    assert refused > 150
