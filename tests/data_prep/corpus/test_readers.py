"""Every format gives the same documents however it is cut; bad input is named or counted; memory stays bounded."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.corpus import cut
from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import plan_parts
from data_prep.corpus.lines import Trouble
from data_prep.corpus.readers import Document, read_piece
from data_prep.errors import UserError

ROWS = [
    {
        "text": f'dokumen {n}\nbaris "dua", dan tiga',
        "source": f"s{n % 3}",
        "lang": "ms",
        "doc_id": n // 2,
        "id": f"d{n}",
    }
    for n in range(40)
]


def read(*files: Path | str, **config: Any) -> tuple[list[Document], Trouble]:
    settings = CorpusConfig(files=[str(f) for f in files], **config)
    trouble = Trouble(settings)
    parts = plan_parts(settings)
    return [d for part in parts for piece in part for d in read_piece(piece, settings, trouble)], trouble


def write(path: Path, kind: str) -> Path:
    """The rows in one of the formats."""
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
        return path
    if kind.startswith("jsonl"):
        data = "".join(json.dumps(r) + "\n" for r in ROWS).encode()
    else:
        lines: list[str] = []

        class Sink:
            def write(self, line: str) -> None:
                lines.append(line)

        writer = csv.DictWriter(Sink(), list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
        data = "".join(lines).encode()
    path.write_bytes(
        gzip.compress(data) if kind.endswith("gz") else zstandard.compress(data) if kind.endswith("zst") else data
    )
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "csv.zst", "parquet"])
@pytest.mark.parametrize("part_mb", [16.0, 1e-4])
def test_formats_hold_the_same(tmp_path: Path, kind: str, part_mb: float) -> None:
    documents, _ = read(write(tmp_path / f"a.{kind}", kind), part_mb=part_mb)
    assert documents == [Document(r["text"], r["source"], "ms", str(r["doc_id"]), r["id"]) for r in ROWS]


def test_fields_are_named_in_the_config(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"body": "isi", "head": " Tajuk ", "site": "x.my", "tongue": "en", "thread": 7, "key": 3}\n'
    )
    documents, _ = read(
        tmp_path / "a.jsonl",
        text_field="body", title_field="head", source_field="site", language_fields=["tongue"],
        document_fields=["thread"], id_fields=["key"],
    )  # fmt: skip
    assert documents == [Document("Tajuk\nisi", "x.my", "en", "7", "3")]


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlang\n"dia kata\tms\nya" katanya\tms\n')
    assert [d.text for d in read(tmp_path / "a.tsv")[0]] == ['"dia kata', 'ya" katanya']


def test_folders_globs_and_patterns(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a/deep/y.txt.gz", "a/z.txt.zst", ".hidden/h.txt", "a/.h.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        data = name.encode()
        packed = (
            gzip.compress(data) if name.endswith("gz") else zstandard.compress(data) if name.endswith("zst") else data
        )
        (tmp_path / name).write_bytes(packed)
    expected = ["a/deep/y.txt.gz", "a/z.txt.zst", "b/x.txt"]
    assert [d.text for d in read(tmp_path)[0]] == expected
    assert [d.source for d in read(tmp_path)[0]] == ["y", "z", "x"]
    assert [d.text for d in read(tmp_path / "**" / "*.txt*")[0]] == expected
    assert [d.text for d in read(tmp_path / "b", tmp_path)[0]] == [expected[2], *expected[:2]]


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "data" / "a" / "x.txt").write_text("satu")
    (tmp_path / "else" / "y.txt").write_text("dua")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "else")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    assert [d.text for d in read(tmp_path / "data")[0]] == ["satu", "dua"]
    (tmp_path / "data" / "z.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"z\.txt: no such file"):
        read(tmp_path / "data")


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
@pytest.mark.parametrize("block", [2, 5, 1 << 16])
def test_cuts_of_plain_text_lose_and_double_nothing(
    tmp_path: Path, unit: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "_BLOCK", block)
    chance = random.Random(0)
    for trial in range(30):
        lines = chance.choices(["a", "", "  ", "\r", "baris panjang " * 3, "é你", "x\r"], k=chance.randrange(1, 40))
        (tmp_path / "a.txt").write_bytes("\n".join(lines).encode() + b"\n" * chance.randrange(3) + b"z")
        whole = [d.text for d in read(tmp_path / "a.txt", txt_unit=unit)[0]]
        for size in (1, 2, 3, 7, 20, 64):
            pieces = [d.text for d in read(tmp_path / "a.txt", txt_unit=unit, part_mb=size / 1e6)[0]]
            assert pieces == whole, (trial, size)


def test_cuts_of_json_lines_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)
    lines = [json.dumps({"text": "x" * chance.randrange(300)}) for _ in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    whole = read(tmp_path / "a.jsonl")[0]
    for size in (1, 37, 500, 5000):
        assert read(tmp_path / "a.jsonl", part_mb=size / 1e6)[0] == whole
    assert len(plan_parts(CorpusConfig(files=[str(tmp_path / "a.jsonl")], part_mb=0.005))) > 5


def test_small_files_share_a_part_and_a_limit_keeps_a_file_whole(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"{n:02d}.txt").write_text("satu\n\ndua\n" * 50)
    assert len(plan_parts(CorpusConfig(files=[str(tmp_path)]))) == 1
    assert len(plan_parts(CorpusConfig(files=[str(tmp_path)], part_mb=0.0012))) == 10
    parts = plan_parts(CorpusConfig(files=[str(tmp_path)], part_mb=0.0001, max_documents_per_file=3))
    assert [len(p) for p in parts] == [1] * 20 and all(p[0]["stop"] is None for p in parts)


BAD = {
    "no JSON": (b"{", "is not JSON"),
    "no object": (b"[1]", "list, not an object"),
    "no text": (b'{"teks": "x"}', "'text' is missing"),
    "a number": (b'{"text": 5}', "'text' is a int"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "is not UTF-8"),
    "NUL": (b'{"text": "a\0b"}', "NUL byte at column 12"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("part_mb", [16.0, 2e-5])
def test_bad_lines_are_named_or_counted(tmp_path: Path, what: str, part_mb: float) -> None:
    line, says = BAD[what]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "satu"}\n\n' + line + b'\n{"text": "dua"}\n')
    with pytest.raises(UserError, match=says) as caught:
        read(path, part_mb=part_mb)
    assert f"{path}, line 3" in str(caught.value)
    documents, trouble = read(path, part_mb=part_mb, on_bad_line="skip")
    assert [d.text for d in documents] == ["satu", "dua"]
    assert trouble.counts == {"bad_lines": 1} and says in trouble.samples["bad_lines"][0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", "line 1: is not UTF-8"),
        ("a.txt", b"baik\n\0\0\0", "line 2: holds a NUL byte"),
        ("a.txt", "satu".encode("utf-16"), "line 1: is not UTF-8"),
        ("a.csv", b'text,n\n"a,1\n', "line 2: is not CSV"),
        ("a.csv", b"text,n\na,1\nb\n", "line 3: has 1 columns, the header 2"),
        ("a.csv", b"body,n\na,1\n", "none is named 'text'"),
        ("a.csv", b"text,text\na,1\n", "'text' stands twice"),
        ("a.parquet", b"PAR1 bukan", "damaged or no Parquet file"),
        ("a.txt.gz", b"bukan gzip", "gzip stream is cut off or damaged"),
        ("a.txt.zst", zstandard.compress(b"satu\n" * 99)[:-2], "zstd stream is cut off"),
        ("a.txt", b"", "is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.docx", b"x", "is none of .jsonl"),
        ("a.parquet.gz", b"x", "is none of .jsonl"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path / name)
    assert name in str(caught.value) and "Fix:" in str(caught.value)


def test_bad_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"isi": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="none is named 'text'"):
        read(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="is empty"):
        read(tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="row 2: 'text' is a NoneType"):
        read(tmp_path / "c.parquet")
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "d.parquet")
    documents, trouble = read(tmp_path / "d.parquet", on_bad_line="skip")
    assert [d.text for d in documents] == ["a"] and "not UTF-8" in trouble.samples["bad_lines"][0]
    whole = (write(tmp_path / "e.parquet", "parquet")).read_bytes()
    (tmp_path / "e.parquet").write_bytes(whole[:200] + bytes(100) + whole[300:])
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "e.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.jsonl.gz"])
def test_an_overlong_line_is_named_or_counted(tmp_path: Path, name: str) -> None:
    long = "x" * 50_000
    if ".jsonl" in name:
        data = f'{{"text": "satu"}}\n{{"text": "{long}"}}\n{{"text": "dua"}}\n'
    else:
        data = ("text\n" if name == "a.csv" else "") + f"satu\n{long}\ndua\n"
    (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
    with pytest.raises(UserError, match=r"of 0\.1 MB, over corpus.max_line_mb = 0.01") as caught:
        read(tmp_path / name, max_line_mb=0.01, txt_unit="line")
    assert f"{name}, line {3 if name == 'a.csv' else 2}" in str(caught.value)
    documents, trouble = read(tmp_path / name, max_line_mb=0.01, oversize="skip", txt_unit="line")
    assert [d.text for d in documents] == ["satu", "dua"] and trouble.counts == {"oversize": 1}


def test_overlong_paragraphs_texts_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("satu\n\n" + "baris\n" * 5000 + "\ndua\n")
    documents, trouble = read(tmp_path / "a.txt", max_line_mb=0.01, oversize="skip")
    assert [d.text for d in documents] == ["satu", "dua"] and "line 3: begins a paragraph" in trouble.samples[
        "oversize"
    ][0]
    assert read(tmp_path / "a.txt", max_line_mb=0.01, oversize="skip", txt_unit="file")[0] == []
    pq.write_table(pa.table({"text": ["a", "x" * 50_000]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 2: is a text of 0\.1 MB"):
        read(tmp_path / "a.parquet", max_line_mb=0.01)


MEASURE = """
import resource, sys
from data_prep.corpus import cut
from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import plan_parts
from data_prep.corpus.lines import Trouble
from data_prep.corpus.readers import read_piece
config = CorpusConfig(files=[sys.argv[1]], oversize="skip", max_line_mb=4.0)
trouble = Trouble(config)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = sum(len(d.text) for part in plan_parts(config) for piece in part for d in read_piece(piece, config, trouble))
print(n, trouble.counts["oversize"], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_of_200_mb_is_never_in_memory(tmp_path: Path, repo: Path, packed: bool) -> None:
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    with gzip.open(path, "wb", compresslevel=1) if packed else path.open("wb") as stream:
        stream.write(b'{"text": "satu"}\n{"text": "')
        for _ in range(200):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n{"text": "dua"}\n')
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=repo, capture_output=True, text=True, check=True
    )
    characters, skipped, grown_mb = map(int, done.stdout.split())
    assert (characters, skipped) == (7, 1)
    assert grown_mb < 40


def test_hub_data_sets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(3):
        lines = [json.dumps({"text": f"fail {n} baris {i}", "lang": "ms"}) for i in range(4)]
        (folder / f"train-{n:05d}-of-00003.jsonl").write_text("\n".join(lines))
    (folder / "test-00000-of-00001.jsonl").write_text('{"text": "ujian"}\n')
    documents, _ = read(f"datasets:{folder}")
    assert [d.text for d in documents] == [f"fail {n} baris {i}" for n in range(3) for i in range(4)]
    assert {d.label for d in documents} == {"ms"}
    assert [d.text for d in read(f"datasets:{folder}::test")[0]] == ["ujian"]
    with pytest.raises(UserError, match="cannot be opened"):
        read(f"datasets:{folder}::tiada")
    with pytest.raises(UserError, match="cannot be opened"):
        read("datasets:tiada/set-begini")


def test_hub_data_sets_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install 'rumpun\\[data\\]'"):
        read("datasets:apa/sahaja")
