"""What a user can get wrong, through the command line: one line with value, rule and fix, exit code 2, nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main

RECIPE = """
name = "own"

[corpus]
files = ["{data}/*.jsonl.gz", "{data}/*.jsonl"]

[tokenizer]
vocab_size = 300

[tokens]
row_tokens = 16
validation_fraction = 0.0

[mine]
neighbors = 5

[mine.policy]
negative_ranks = [2, 5]

[mine.teacher]
dimension = 4
min_documents = 1

[synth]

[base.random]
hidden = 16
layers = 2
heads = 2
key_value_heads = 1
feed_forward = 32

[truncate]
layers = 1

[pretrain]
precision = "fp32"

[finetune]
precision = "fp32"

[eval]
sets = ["{data}/set"]
"""


def write_jsonl(path: Path, rows: list[dict]) -> None:
    data = "".join(json.dumps(r) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with recipe.toml, data/ (30 documents, one evaluation set), and an empty runs/."""
    data = tmp_path / "data"
    (data / "set").mkdir(parents=True)
    words = ["banjir", "hujan", "sekolah", "rumah", "pasar", "ikan", "nasi", "jalan", "kereta", "bas", "harga", "naik"]
    texts = [f"{words[i % 12]} {words[i * 5 % 12]} {words[i * 7 % 12]} nombor {i} di kampung ini" for i in range(30)]
    write_jsonl(data / "a.jsonl.gz", [{"text": t} for t in texts])
    write_jsonl(data / "b.jsonl", [{"text": "satu lagi dokumen tentang harga ikan di pasar"}])
    write_jsonl(data / "set" / "corpus.jsonl", [{"_id": "d", "text": "dokumen lain sama sekali"}])
    write_jsonl(data / "set" / "queries.jsonl", [{"_id": "q", "text": "soalan"}])
    (data / "set" / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "runs").mkdir()
    return tmp_path


def rumpun(place: Path, capsys: pytest.CaptureFixture[str], *words: str, command: str = "mine") -> tuple[int, str]:
    """Exit code and the error line of `rumpun COMMAND recipe.toml …`, run here."""
    with pytest.raises(SystemExit) as ended:
        main(
            [command, str(place / "recipe.toml"), "--data", str(place / "data"), "--runs", str(place / "runs"), *words]
        )
    return int(ended.value.code or 0), capsys.readouterr().err


def refused(place: Path, capsys: pytest.CaptureFixture[str], *words: str, command: str = "mine") -> str:
    """The one error line of a refused command; checks its form and that nothing half-written is left."""
    code, err = rumpun(place, capsys, *words, command=command)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Fix: " in lines[0], err
    assert not list((place / "runs").glob("*/.building/*"))
    return lines[0]


def test_the_place_itself_is_sound(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = rumpun(place, capsys)
    assert code == 0, err
    assert (place / "runs" / "own" / "mine" / "stage.json").exists()


def missing(data: Path) -> str:
    (data / "a.jsonl.gz").unlink()
    return r"corpus\.files = .*no such file"


def empty(data: Path) -> str:
    (data / "b.jsonl").write_bytes(b"")
    return r"b\.jsonl: is empty"


def unreadable(data: Path) -> str:
    (data / "b.jsonl").unlink()
    (data / "b.jsonl").symlink_to("b.jsonl")  # a link to itself: not even root can read it
    return r"b\.jsonl.*(no such file|cannot be read)"


def not_utf8(data: Path) -> str:
    (data / "b.jsonl").write_bytes(b'{"text": "harga ikan \xe9 di pasar besar"}\n')
    return r"b\.jsonl, line 1: is not UTF-8 \(byte 0xe9"


def half_gzipped(data: Path) -> str:
    path = data / "a.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    return r"a\.jsonl\.gz.*gzip stream is cut off or damaged"


def no_text(data: Path) -> str:
    write_jsonl(data / "b.jsonl", [{"text": "sebuah dokumen yang baik di sini"}, {"txt": "x"}])
    return r"b\.jsonl, line 2: 'text' is missing"


def no_json(data: Path) -> str:
    (data / "b.jsonl").write_text("{oops\n")
    return r"b\.jsonl, line 1: is not JSON"


@pytest.mark.parametrize(
    "spoil", [missing, empty, unreadable, not_utf8, half_gzipped, no_text, no_json], ids=lambda f: f.__name__
)
def test_a_bad_corpus_file_is_named(place: Path, capsys: pytest.CaptureFixture[str], spoil) -> None:
    import re

    words = spoil(place / "data")
    assert re.search(words, refused(place, capsys)), words


def test_zero_pairs_after_mining(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(
        place, capsys, "--set", "mine.policy.positive_min_score=0.97", "--set", "mine.policy.duplicate_score=0.975"
    )
    assert "mine" in line and "positive_min_score" in line
    assert (place / "runs" / "own" / "corpus" / "stage.json").exists()


def test_fewer_documents_than_ranks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "data" / "a.jsonl.gz").unlink()
    write_jsonl(place / "data" / "a.jsonl.gz", [{"text": "x"}])
    line = refused(place, capsys, "--nproc", "2")
    assert "1 documents left" in line and "each of the 2 processes" in line


def test_a_shard_whose_checksum_is_wrong(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rumpun(place, capsys, command="prep")[0] == 0
    shard = place / "runs" / "own" / "corpus" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    times = shard.stat()
    shard.write_bytes(bytes(data))
    assert "part-00000.parquet: its checksum differs" in refused(place, capsys)
    os.utime(
        shard, ns=(times.st_atime_ns, times.st_mtime_ns)
    )  # even where size and time look right, the reader sees it
    assert "part-00000.parquet: its checksum differs" in refused(place, capsys)


def test_a_run_folder_of_another_recipe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rumpun(place, capsys, command="prep")[0] == 0
    (place / "recipe.toml").rename(place / "other.toml")
    (place / "recipe.toml").write_text(RECIPE.replace('"own"', '"theirs"'))
    assert "belongs to recipe 'own' (recipe.toml), not to 'theirs'" in refused(place, capsys, "--run", "own")
    assert "must be letters" in refused(place, capsys, "--run", "../own")
    assert rumpun(place, capsys, "--run", "fresh")[0] == 0


def test_a_folder_that_is_no_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs" / "own").mkdir()
    (place / "runs" / "own" / "thesis.txt").write_text("precious")
    assert "is not a run of rumpun" in refused(place, capsys)
    assert (place / "runs" / "own" / "thesis.txt").read_text() == "precious"


def test_a_place_where_no_folder_can_be(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").write_text("x")
    code, err = rumpun(place, capsys, "--runs", str(place / "file" / "runs"))
    assert code == 2 and "cannot be created" in err and "Traceback" not in err


def test_data_that_is_not_given_or_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["mine", str(place / "recipe.toml"), "--runs", str(place / "runs")])
    assert ended.value.code == 2 and "add --data" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["mine", str(place / "recipe.toml"), "--runs", str(place / "runs"), "--data", str(place / "nowhere")])
    assert ended.value.code == 2 and "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["corpus.min_chars=0", "tokens.row_tokens=-8", "finetune.batch_pairs=1"])
def test_sizes_that_cannot_be(place: Path, capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert override.split("=")[0] in refused(place, capsys, "--set", override)


@pytest.mark.slow
def test_a_full_disk_in_the_middle_of_a_stage(place: Path) -> None:
    """A real tmpfs of 1 MB: the corpus does not fit; what was finished before stays, nothing half-written is left."""
    small = place / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        chance = random.Random(0)
        words = ["".join(chance.choices("abdegiklmnoprstu", k=6)) for _ in range(250_000)]
        rows = [{"text": " ".join(words[i : i + 125]), "lang": "ms"} for i in range(0, len(words), 125)]
        write_jsonl(place / "data" / "big.jsonl.gz", rows)
        command = [sys.executable, "-m", "launch.cli", "prep", str(place / "recipe.toml")]
        command += ["--data", str(place / "data"), "--runs", str(small)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "the disk (or your quota) is full" in done.stderr and "Traceback" not in done.stderr
        assert not list(small.glob("own/.building/*")) and not (small / "own" / "corpus").exists()
    finally:
        subprocess.run(["umount", str(small)], check=False)


ANSWER = (
    "Bayaran bantuan banjir sebanyak seribu ringgit dibuat kepada setiap keluarga yang terjejas di Kelantan melalui "
    "pejabat daerah masing-masing sebelum hujung bulan ini."
)
PLANTED = {
    "exact": ANSWER,
    "re-cased": ANSWER.upper(),
    "re-spaced": ANSWER.replace(" ", "   "),
    "near": " ".join("lain" if i % 5 == 4 else word for i, word in enumerate(ANSWER.split())),
}


@pytest.mark.parametrize("how", PLANTED)
def test_evaluation_text_in_the_corpus_ends_the_run_and_is_named(
    how: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(place / "data" / "set" / "corpus.jsonl", [{"_id": "d", "text": ANSWER}])
    write_jsonl(place / "data" / "b.jsonl", [{"text": "satu dokumen lain tentang harga ikan"}, {"text": PLANTED[how]}])
    line = refused(place, capsys, command="prep")
    assert "of b repeats document d of set" in line and "1 of 32 documents repeat evaluation texts" in line
    assert 'corpus.decontaminate.on_overlap = "remove"' in line
    code, err = rumpun(place, capsys, "--set", "corpus.decontaminate.on_overlap=remove", command="prep")
    assert code == 0, err
    report = json.loads((place / "runs" / "own" / "corpus" / "report.json").read_text())
    assert report["counts"]["evaluation_overlap"] == 1 and report["counts"]["kept"] == 31
