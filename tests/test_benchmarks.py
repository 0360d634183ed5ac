"""The benchmarks' own arithmetic, and their quick forms from start to end."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parent.parent
TRAINER = """
import sys
sys.path.insert(0, {benchmarks!r})
from _turns import Gate
gate = Gate()
print("what libraries print must not reach the parent")
gate.tell = lambda: {{"steps": step}}
gate.save = lambda folder: open(folder, "w").write(str(step))
step = 0
while True:
    gate.next_step()
    step += 1
    if step == {fails_at}:
        gate.fail("no more")
    gate.saw(1.0 / step)
"""


@pytest.fixture(scope="module")
def turns() -> ModuleType:
    """benchmarks/_turns.py as a module."""
    spec = importlib.util.spec_from_file_location("_turns", REPO / "benchmarks" / "_turns.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["_turns"] = module
    spec.loader.exec_module(module)
    return module


def _trainer(folder: Path, *, fails_at: int = 0) -> Path:
    script = folder / "trainer.py"
    script.write_text(TRAINER.format(benchmarks=str(REPO / "benchmarks"), fails_at=fails_at))
    return script


def test_trainers_take_turns_and_keep_their_losses(turns: ModuleType, tmp_path: Path) -> None:
    job = {"side": "rumpun", "finetune": {}}
    arena = turns.Arena(tmp_path, _trainer(tmp_path), job, python=sys.executable, threads=1)
    trainees = [arena.start({"side": name}, name=name) for name in ("rumpun", "other")]
    blocks = turns.take_turns(trainees, warm=1, steps=2, rounds=3)
    trainees[0].save(tmp_path / "saved")
    for trainee in trainees:
        trainee.close()
    for name in ("rumpun", "other"):
        assert [len(b.losses) for b in blocks[name]] == [1, 2, 2, 2]
        assert turns.losses(blocks[name]) == pytest.approx([1 / n for n in range(1, 8)])
        assert blocks[name][-1].told == {"steps": 7}
        assert all(b.wall_s > 0 for b in blocks[name])
    assert (tmp_path / "saved").read_text() == "7"


def test_a_trainer_that_fails_says_why(turns: ModuleType, tmp_path: Path) -> None:
    job = {"side": "rumpun", "finetune": {}}
    arena = turns.Arena(tmp_path, _trainer(tmp_path, fails_at=2), job, python=sys.executable, threads=1)
    trials = arena.trials([{"side": "rumpun"}], steps=1, clock="wall")
    assert [t.failed for t in trials] == ["no more"]
    assert turns.best(trials) is None


def test_the_best_setting_is_the_fastest_that_ran(turns: ModuleType) -> None:
    trials = [
        turns.Trial({"side": "st", "mini_batch_size": 4}, 3.0),
        turns.Trial({"side": "st", "mini_batch_num_tokens": 256, "sorted": True}, 1.0),
        turns.Trial({"side": "st", "loss": "mnrl"}, float("inf"), "out of memory"),
    ]
    assert turns.best(trials) == trials[1].job
    assert turns.best(trials, as_shipped=True) == trials[0].job
    assert turns.label(trials[0].job) == "mini_batch_size 4"


def test_ratios_are_formed_inside_a_round(turns: ModuleType) -> None:
    # the machine is ten times slower in the last round: a ratio of totals would be 1.9
    slow = [turns.Block(w, 2 * w, []) for w in (99.0, 2.0, 4.0, 19.0)]
    fast = [turns.Block(w, w, []) for w in (1.0, 1.0, 2.0, 10.0)]
    found = turns.ratio(slow, fast, clock="wall")
    assert (found.median, found.low, found.high) == (2.0, 1.9, 2.0)
    assert turns.ratio(slow, fast, clock="cpu").median == 4.0
    assert turns.rate(fast, 20, clock="wall").median == 10.0


def test_losses_are_compared_relatively_and_all_of_them(turns: ModuleType) -> None:
    assert turns.largest_difference([1.0, 2.0, 9.0], [1.0, 2.2, 1.0], steps=2) == pytest.approx(0.2 / 2.2)
    with pytest.raises(ValueError, match="3 are to be compared"):
        turns.largest_difference([1.0, 2.0], [1.0, 2.0], steps=3)


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPO, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("datasets") is None, reason="sentence-transformers' trainer needs datasets")
def test_rumpun_trains_as_sentence_transformers_does(tmp_path: Path) -> None:
    page = _run("benchmarks/peers.py", "--quick", "--rehearse", "--out", str(tmp_path / "peers.md"))
    assert (tmp_path / "peers.md").read_text() in page
    apart = re.search(
        r"Largest relative difference .*: rumpun (\S+?); sentence-transformers \(cached.*?\) (\S+?)\. ", page
    )
    assert apart and float(apart[1]) < 1e-4 and float(apart[2]) < 1e-4
    blocks = json.loads((tmp_path / "peers.json").read_text())
    # the rehearsal of the GPU's measurements: both phases, and graphs kept or not, which changes no loss
    every, one = (blocks[f"contrastive, {kept} kept"] for kept in ("every graph", "one graph"))
    for a, b in zip(every, one, strict=True):
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-5)
        assert a["told"]["again_tokens"] == 0 < b["told"]["again_tokens"]
        assert a["told"]["trunk_flops"] == b["told"]["trunk_flops"] > 0
    assert all(block["told"]["tokens"] > 0 for block in blocks["pretraining"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("datasets") is None, reason="sentence-transformers' trainer needs datasets")
def test_a_real_model_is_finetuned_by_both(tmp_path: Path) -> None:
    page = _run("benchmarks/minilm_finetune.py", "--quick", "--out", str(tmp_path / "minilm.md"))
    apart = re.search(r"losses of all steps: (\S+)\.\n", page)
    assert apart and float(apart[1]) < 1e-3
    assert set(json.loads((tmp_path / "minilm.json").read_text())) == {
        "rumpun, seed 0",
        "sentence-transformers, seed 0",
    }


@pytest.mark.slow
def test_a_seek_takes_no_memory_that_grows_with_its_position() -> None:
    page = _run("benchmarks/cursor_seek.py", "--quick")
    kept = [int(found[1].replace(",", "")) for found in re.finditer(r"\) \| [\d.]+ \(.*\) \| ([\d,]+) \|\n", page)]
    assert len(kept) == 3
    assert max(kept) < min(kept) + 50 < 1000


@pytest.mark.slow
def test_a_resumed_training_pays_for_checking_and_reading_its_checkpoint() -> None:
    page = _run("benchmarks/resume_cost.py", "--quick")
    assert re.search(r"= 12\.\d\d bytes a parameter", page)
    parts = {
        found[1]: (float(found[2]), float(found[3])) for found in re.finditer(r"\| (\D+) \| (\S+) \| (\S+) \|\n", page)
    }
    assert parts["restoring"][0] == 0.0 < parts["restoring"][1]
    first, resumed = (sum(column) - whole for *column, whole in zip(*parts.values(), strict=True))
    assert abs(first) < 0.1 and abs(resumed) < 0.1


@pytest.mark.slow
def test_one_model_gives_the_same_vectors_under_both_encoders() -> None:
    page = _run("benchmarks/encode.py", "--quick")
    apart = re.search(r"any number of any vector: (\S+)\.\n", page)
    assert apart and float(apart[1]) < 1e-5
    assert re.search(r"\| rumpun \| [\d.]+ \(", page)


@pytest.mark.slow
def test_all_ways_of_embedding_agree_and_the_cache_saves_what_it_knows() -> None:
    page = _run("benchmarks/embed_store.py", "--quick")
    apart = re.search(r"any number of any vector: (\S+)\.\n", page)
    assert apart and float(apart[1]) < 1e-5
    assert re.search(r"\| another corpus, nine tenths of it in the cache \| 200 \|", page)
    assert re.search(r"\| the same again: files are checked and kept \| 0 \|", page)
    sizes = [int(found[1].replace(",", "")) for found in re.finditer(r"\| ([\d,]+) \| [\d.]+ \|\n", page)]
    as_json, whole, ours = sizes[:3]
    assert ours < 2100 < whole == 4096 and as_json > 10 * ours


@pytest.mark.slow
def test_near_copies_are_found_and_nothing_else() -> None:
    found = re.findall(r"rumpun .* recall ([\d.]+)  precision ([\d.]+)", _run("benchmarks/near_dedup.py", "--quick"))
    assert len(found) == 2 and all(float(r) > 0.93 and float(p) > 0.98 for r, p in found)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openai") is None, reason="the client of endpoints needs openai")
def test_requests_that_were_answered_are_not_sent_again() -> None:
    page = _run("benchmarks/synth_endpoint.py", "--quick")
    rates = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert [int(concurrency) for concurrency, _, _ in rates] == [1, 4, 16]
    assert "The same requests again, out of the log:" in page


@pytest.mark.slow
def test_policies_are_mined_trained_and_scored_alike(tmp_path: Path) -> None:
    policies = ["positive-aware", "paper"]
    command = ["benchmarks/mining_policies.py", "--quick", "--work", str(tmp_path / "w"), "--policies", *policies]
    page = _run(*command, "--out", str(tmp_path / "page.md"))
    for policy in policies:
        assert f"| {policy} " in page, page
    again = _run(*command, "--page-only", "--out", str(tmp_path / "again.md"))
    scores = [[line for line in text.splitlines() if line.startswith("| p")] for text in (page, again)]
    assert scores[0] == scores[1] and "cells that were there" in again


@pytest.mark.slow
def test_the_parts_of_a_jobs_start_are_the_whole() -> None:
    page = _run("benchmarks/slurm_startup.py", "--quick")
    if page.startswith("skipped: "):
        pytest.skip(page.strip())
    rows = {found[1]: float(found[2]) for found in re.finditer(r"^\| ([^|]+) \| ([\d.]+) \(", page, re.MULTILINE)}
    parts = [
        seconds for name, seconds in rows.items() if name.startswith(("the controller", "preflight", "starting the"))
    ]
    parts += [seconds for name, seconds in rows.items() if name.startswith("rank 0: ")]
    assert len(parts) > 8 and abs(sum(parts) - rows["all"]) < 1.0
    assert 0 < rows["until the checkpoint is whole"] <= rows["until the ranks are gone"]
    assert {"rumpun submit", "rumpun status", "rumpun cancel"} <= set(rows)
