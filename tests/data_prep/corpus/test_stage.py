"""The whole stage: one result for any cut, any workers and after a kill; the limit, the split, the gate, the report."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.corpus.build import CorpusConfig, build_corpus
from data_prep.corpus.idents import IdentWriter, repeated_idents
from data_prep.corpus.keys import text_key
from data_prep.corpus.limit import apply_limit
from data_prep.corpus.quality import RULES as QUALITY_RULES
from data_prep.corpus.quality import QualityConfig, failed_rule
from data_prep.corpus.report import RULES, report_lines
from data_prep.corpus.split import is_held_out
from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from data_prep.progress import Progress
from data_prep.shards import Shards
from launch.fanout import LocalFanout

WORDS = (
    "nasi lemak santan sambal ikan bilis akta seksyen mahkamah hakim bola gol liga piala ubat demam the of boss meeting"
)


def corpus(folder: Path, files: int = 4, rows: int = 60) -> Path:
    """Files of several formats with copies, near copies, short texts, personal data and repeated ids."""
    chance = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    for number in range(files):
        lines = []
        for row in range(rows):
            kind = chance.random()
            if texts and kind < 0.1:
                text = chance.choice(texts).upper()
            elif texts and kind < 0.2:
                text = chance.choice(texts) + " tambah"
            elif kind < 0.25:
                text = "pendek"
            else:
                text = " ".join(chance.choices(WORDS.split(), k=45)) + f" {number} {row}"
                if kind < 0.35:
                    text += " hubungi 012-3456789 atau @ali"
            texts.append(text)
            lines.append(
                json.dumps({"text": text, "id": str(row // 2), "source": f"s{row % 3}", "group": f"g{row // 4}"})
            )
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def build(out: Path, files: Path, sets: list[Path] | None = None, fanout: Any = None, **config: Any) -> dict[str, Any]:
    settings = CorpusConfig.model_validate({"files": [str(files)], **config})
    scratch = out.with_name(f"{out.name}-scratch")
    out.mkdir(parents=True, exist_ok=True)
    return dict(
        build_corpus(settings, evaluation_sets=sets or [], out=out, progress=Progress(), fanout=fanout, scratch=scratch)
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(Shards(folder, "documents"))


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_cut_changes_nothing(tmp_path: Path) -> None:
    files = corpus(tmp_path / "in", files=3, rows=40)
    counts = build(tmp_path / "a", files, held_out=0.2)
    assert counts["kept"] > 60 and counts["duplicates"] > 3 and counts["near_duplicates"] > 3
    for number, size in enumerate((0.006, 0.0025)):
        out = tmp_path / f"c{number}"
        assert build(out, files, held_out=0.2, part_mb=size) == counts
        assert rows(out) == rows(tmp_path / "a")
        assert rows(out / "held_out") == rows(tmp_path / "a" / "held_out")
        assert (out / "report.json").read_bytes() == (tmp_path / "a" / "report.json").read_bytes()


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    files = corpus(tmp_path / "in")
    counts = build(tmp_path / "a", files, held_out=0.2, part_mb=0.004)
    assert build(tmp_path / "b", files, fanout=LocalFanout(2), held_out=0.2, part_mb=0.004) == counts
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_counts_add_up_and_the_report_shows_what_was_removed(tmp_path: Path) -> None:
    counts = build(tmp_path / "o", corpus(tmp_path / "in"), held_out=0.1)
    assert counts["read"] == 240 == counts["kept"] + sum(counts.get(rule, 0) for rule in RULES)
    assert counts["kept"] == len(rows(tmp_path / "o"))
    report = read_json(tmp_path / "o" / "report.json")
    rules = {r["rule"]: r for r in report["rules"]}
    assert list(rules) == list(RULES)
    for name in ("too_short", "duplicates", "near_duplicates"):
        assert rules[name]["removed"] == counts[name] > 0
        assert rules[name]["share"] == pytest.approx(counts[name] / 240)
        assert len(rules[name]["samples"]) == min(10, counts[name])
    sample = rules["duplicates"]["samples"][0]
    assert text_key(sample["text"]) == text_key(sample["repeats"]) and sample["text"] != sample["repeats"]
    assert (
        rules["near_duplicates"]["samples"][0]["text"].split()[:10]
        == rules["near_duplicates"]["samples"][0]["repeats"].split()[:10]
    )
    private = {p["kind"]: p for p in report["private"]}
    assert private["phone"]["replaced"] == private["user"]["replaced"] > 0
    assert "3456789" not in json.dumps(report)
    assert sum(s["read"] for s in report["sources"]) == 240 == sum(s["read"] for s in report["languages"])
    assert sum(s["kept"] for s in report["sources"]) == counts["kept"]
    assert counts["duplicate_ids"] == 120 and report["other"]["duplicate_ids"][0] == {
        "id": "0",
        "file": "0.jsonl",
        "times": 2,
    }
    lines = report_lines(report)
    assert lines[0].split()[0] == "240" and any("exact copy" in line for line in lines)


def test_documents_are_whole_on_one_side_of_the_split(tmp_path: Path) -> None:
    files = corpus(tmp_path / "in")
    build(tmp_path / "o", files, held_out=0.3)
    training, held = rows(tmp_path / "o"), rows(tmp_path / "o" / "held_out")
    assert training and held
    assert not {r["document"] for r in training} & {r["document"] for r in held}
    assert all(is_held_out(r["document"], 0.3, 0) for r in held)
    build(tmp_path / "p", files)
    assert not (tmp_path / "p" / "held_out").exists()
    assert sorted(r["id"] for r in training + held) == sorted(r["id"] for r in rows(tmp_path / "p"))


def test_personal_data_do_not_reach_the_corpus(tmp_path: Path) -> None:
    build(tmp_path / "o", corpus(tmp_path / "in"))
    texts = [r["text"] for r in rows(tmp_path / "o")]
    assert any("<PHONE> atau <USER>" in t for t in texts) and not any("012-3456789" in t for t in texts)


KILLED = """
import sys, json, time
from pathlib import Path
import data_prep.corpus.part as part
from data_prep.corpus.build import CorpusConfig, build_corpus
from data_prep.progress import Progress
slow, log = part.clean_part, Path(sys.argv[4])
def clean_part(**asked):
    with log.open("a") as stream:
        stream.write(asked["folder"][-22:-17] + "\\n")
    done = slow(**asked)
    time.sleep(float(sys.argv[5]))
    return done
part.clean_part = clean_part
config = CorpusConfig.model_validate(json.loads(sys.argv[1]))
Path(sys.argv[2]).mkdir(exist_ok=True)
build_corpus(config, evaluation_sets=[], out=Path(sys.argv[2]), progress=Progress(), scratch=Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, repo: Path) -> None:
    files = corpus(tmp_path / "in")
    config = {"files": [str(files)], "part_mb": 0.004}
    log = tmp_path / "log"
    command = [sys.executable, "-c", KILLED, json.dumps(config), str(tmp_path / "o"), str(tmp_path / "s"), str(log)]
    process = subprocess.Popen([*command, "0.2"], cwd=repo)
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 6):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "o" / "manifest.json").exists()
    subprocess.run([*command, "0"], cwd=repo, check=True)
    started = Counter(log.read_text().split())
    assert len(started) > 8 and sum(started.values()) == len(started) + 1, (
        "more than the interrupted part was done twice"
    )
    build(tmp_path / "whole", files, part_mb=0.004)
    assert content(tmp_path / "o") == content(tmp_path / "whole")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    files = corpus(tmp_path / "in")
    first = build(tmp_path / "o", files)
    with (files / "3.jsonl").open("a") as stream:
        stream.write('{"text": "satu dokumen baru yang tiada salinannya di mana-mana fail lain"}\n')
    assert build(tmp_path / "o", files)["kept"] == first["kept"] + 1


@pytest.mark.parametrize("limit", [1, 5, 17])
def test_the_limit_is_of_documents_that_stay(tmp_path: Path, limit: int) -> None:
    files = corpus(tmp_path / "in", rows=40)
    build(tmp_path / "o", files, near={"enabled": False}, max_documents_per_file=limit, part_mb=0.002)
    seen: set[str] = set()
    expected = []
    for path in sorted(files.iterdir()):  # the definition: file by file, each text once, until the limit
        kept = 0
        for line in path.read_text().splitlines():
            text = json.loads(line)["text"]
            if kept < limit and len(text) >= 20 and text_key(text) not in seen:
                seen.add(text_key(text))
                expected.append(text_key(text))
                kept += 1
    got = [
        text_key(r["text"].replace("<PHONE>", "012-3456789").replace("<USER>", "@ali")) for r in rows(tmp_path / "o")
    ]
    assert got == expected


def test_what_falls_to_the_limit_makes_place_for_its_copies(tmp_path: Path) -> None:
    # part 0: file with texts A B C; part 1: files with (copy of C, copy of a copy of C) and (copy of A, D)
    folders = [tmp_path / "0", tmp_path / "1"]
    verdicts = [[0, 0, 0], [2, 1, 1, 0]]
    of = [[[-1, -1]] * 3, [[0, 2], [1, 0], [0, 0], [-1, -1]]]
    for folder, verdict, repeats in zip(folders, verdicts, of, strict=True):
        folder.mkdir()
        np.save(folder / "verdict.npy", np.array(verdict, np.uint8))
        np.save(folder / "of.npy", np.array(repeats, np.int64))
    apply_limit(folders, [[3], [2, 2]], 2)
    assert [np.load(f / "within.npy").tolist() for f in folders] == [[True, True, False], [True, False, False, True]]


def test_repeated_ids_are_found_across_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    monkeypatch.setattr("data_prep.corpus.idents._RUN", 17)
    given = [[(chance.choice("ab"), str(chance.randrange(60))) for _ in range(50)] for _ in range(4)]
    for number, part in enumerate(given):
        with IdentWriter(tmp_path / str(number)) as writer:
            for file, ident in part:
                writer.add(file, ident)
    folders = [tmp_path / str(n) for n in range(4)]
    times = Counter(pair for part in given for pair in part)
    for size in (7, 1 << 22):
        monkeypatch.setattr("data_prep.corpus.idents._RANGE", size)
        repeated, samples = repeated_idents(folders)
        assert repeated == sum(n - 1 for n in times.values())
        expected = [pair for pair in dict.fromkeys(p for part in given for p in part) if times[pair] > 1][:10]
        assert [(s["file"], s["id"]) for s in samples] == expected
        assert all(times[s["file"], s["id"]] == s["times"] for s in samples)


MEASURED = """
import resource, sys
from pathlib import Path
from data_prep.corpus import writer
from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import plan_parts
from data_prep.corpus.part import clean_part
writer._MOST_CHARACTERS = 2_000_000
off = {"enabled": False}
config = CorpusConfig.model_validate({"files": [sys.argv[1]], "near": off, "private": off, "quality": off})
pieces = plan_parts(config)[0]
told = clean_part(pieces=pieces, config=config.model_dump(mode="json"), sets=[], folder=sys.argv[2])
print(told["rows"][0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path, repo: Path) -> None:
    used_mb = []
    for size in (10, 80):
        with gzip.open(tmp_path / "a.jsonl.gz", "wt", compresslevel=1) as stream:
            for number in range(size * 10):
                text = f"dokumen {number} " + "kata yang panjang " * 5500
                stream.write(json.dumps({"text": text, "lang": "ms", "id": str(number)}) + "\n")
        command = [sys.executable, "-c", MEASURED, str(tmp_path / "a.jsonl.gz"), str(tmp_path / f"p{size}")]
        done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True)
        rows, used = map(int, done.stdout.split())
        assert rows == size * 10
        used_mb.append(used)
    assert used_mb[1] < used_mb[0] + 25, used_mb


def test_overlap_is_removed_or_ends_the_run(tmp_path: Path, evaluation_set: Path, write_jsonl: Any) -> None:
    planted = "KUCING itu tidur,   di atas meja makan!"
    source = write_jsonl(
        tmp_path / "c.jsonl", [{"text": planted}, {"text": "Harga minyak sawit naik lagi minggu ini."}]
    )
    counts = build(tmp_path / "o", source, [evaluation_set], decontaminate={"on_overlap": "remove"})
    assert counts["evaluation_overlap"] == 1 and counts["kept"] == 1
    report = read_json(tmp_path / "o" / "report.json")
    sample = next(r for r in report["rules"] if r["rule"] == "evaluation_overlap")["samples"][0]
    assert sample["text"].startswith("KUCING") and "d2 of mini" in sample["repeats"]
    with pytest.raises(UserError, match=r"KUCING itu tidur.* repeats document d2 of mini.*1 of 2 documents repeat"):
        build(tmp_path / "p", source, [evaluation_set])


def test_evaluation_texts_are_found_behind_their_placeholders(
    tmp_path: Path, evaluation_set: Path, write_jsonl: Any
) -> None:
    folder = evaluation_set
    write_jsonl(
        folder / "queries.jsonl.gz",
        [{"_id": "q1", "text": "siapa @ali"}, {"_id": "q2", "text": "di mana kucing itu tidur"}],
    )
    source = write_jsonl(
        tmp_path / "c.jsonl", [{"text": "siapa @ali"}, {"text": "satu dokumen lain yang panjang sedikit"}]
    )
    removing = {"on_overlap": "remove"}
    assert build(tmp_path / "o", source, [folder], min_chars=5, decontaminate=removing)["evaluation_overlap"] == 1


def test_languages_may_be_chosen(tmp_path: Path, write_jsonl: Any) -> None:
    texts = [
        "Kerajaan mengumumkan bahawa cuti sekolah bermula hari ini.",
        "The school holidays begin on Monday this year.",
    ]
    source = write_jsonl(tmp_path / "c.jsonl", [{"text": t} for t in texts])
    counts = build(tmp_path / "o", source, language={"keep": ["en"]})
    assert counts["other_language"] == 1 and [r["language"] for r in rows(tmp_path / "o")] == ["en"]


def test_bad_lines_are_passed_over_where_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "satu dokumen yang cukup panjang"}\n{"text": "caf\xe9"}\n{\n')
    counts = build(tmp_path / "o", tmp_path / "a.jsonl", on_bad_line="skip")
    assert counts["bad_lines"] == 2 and counts["kept"] == 1
    report = read_json(tmp_path / "o" / "report.json")
    assert len(next(r for r in report["rules"] if r["rule"] == "bad_lines")["samples"]) == 2


POOR = {
    "few_letters": "123 :: 456 -- 789 ++ 1011 == abc //// 22 33 44",
    "many_digits": "keputusan " + "abcdefgh12345678 " * 8,
    "many_symbols": "lihat ini ya kawan semua sekali ═════════════ ☆☆☆☆☆",
    "many_placeholders": "<USER> <USER> <USER> <URL> tengok <URL> ini",
    "word_length": "s e l a m a t p a g i s e m u a",
    "repeated_lines": "KOPI KURUS MURAH\n" * 5 + "beli sekarang",
    "frequent_words": "beli sekarang " * 12 + "murah sangat kawan kawan",
    "repeated_words": "satu dua tiga empat lima enam tujuh lapan sembilan sepuluh sebelas dua belas " * 6,
    "too_long": "panjang " * 200_000,
    "dropped_phrase": "Sila AKTIFKAN JavaScript untuk membaca halaman ini",
}


@pytest.mark.parametrize("rule", POOR)
def test_quality_rules(rule: str) -> None:
    config = QualityConfig(drop_phrases=["aktifkan javascript"])
    assert failed_rule(POOR[rule], config) == rule
    assert set(POOR) == set(QUALITY_RULES)
    assert failed_rule(POOR[rule], QualityConfig(enabled=False)) is None


@pytest.mark.parametrize(
    "text",
    [
        "weh best gila!!! 😂😂😂 jom lepak esok",
        "Harga ayam RM9.90 sekilo, telur RM12.90 sepapan, minyak RM6.90",
        "政府宣布学校假期将于星期一开始，家长请注意。",
        "பள்ளி விடுமுறை திங்கட்கிழமை தொடங்கும் என்று அரசு அறிவித்தது.",
        "Seksyen 12(3) Akta 574 [P.U.(A) 362/2007] hendaklah dibaca bersama subseksyen 4(1A).",
        "<USER> setuju sangat dengan awak",
        "hahaha hahaha hahaha kelakar gila cerita dia ni",
        "Berapa kerajaan perlu bayar setiap tahun?\n\nRM100 juta x 8% = RM8 juta",
    ],
)
def test_good_texts_stay(text: str) -> None:
    assert failed_rule(text, QualityConfig()) is None


def test_quality_keeps_real_text(shared_data: Path, tmp_path: Path) -> None:
    for name, most in (("twitter", 0.002), ("forum_bcari", 0.001), ("legal_ms", 0.002), ("news_ms", 0.001)):
        with gzip.open(shared_data / "corpora" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            texts = [json.loads(line)["text"] for line, _ in zip(stream, range(4000), strict=False)]
        assert sum(failed_rule(t, QualityConfig()) is not None for t in texts) <= most * len(texts)


def test_the_copies_are_found_anew_when_their_settings_change(tmp_path: Path) -> None:
    files = corpus(tmp_path / "in")
    near = build(tmp_path / "o", files)
    exact = build(tmp_path / "o", files, near={"enabled": False})
    assert exact["near_duplicates"] == 0 < near["near_duplicates"] and exact["kept"] > near["kept"]
    write_json(tmp_path / "o-scratch" / "copies.json", "half done")
    assert build(tmp_path / "o", files) == near


def test_two_writers_of_one_part_do_not_meet(tmp_path: Path) -> None:
    """A task that outlived its run ends after the one that took its place, and the part is whole all the same."""
    code = """
import sys
from pathlib import Path
from data_prep.corpus.part import whole_folder
with whole_folder(Path(sys.argv[1])) as place:
    (place / "a").write_text("whole")
    print("in", flush=True)
    sys.stdin.readline()
    (place / "b").write_text("whole")
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(tmp_path / "part")]
    writers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "in\n"
    for writer in writers:
        writer.communicate("go\n", timeout=60)
        assert writer.returncode == 0
        assert sorted(p.name for p in (tmp_path / "part").iterdir()) == ["a", "b"]
    assert [p.name for p in tmp_path.iterdir()] == ["part"]
