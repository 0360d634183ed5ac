"""The preflight with real processes for nodes, started by an srun that is a program of the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.slurm.health import preflight, preflight_judge
from launch.slurm.health.preflight import PreflightNeeds, PreflightResult, run_preflight

REPO = Path(__file__).resolve().parents[3]
NODES = ["n1", "n2", "n3"]
QUICK = PreflightNeeds(matrix=False, pairs=False, disk_gb=0.0, shm_gb=0.0)

Fly = Callable[..., PreflightResult]


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the fake srun does otherwise than an ordinary one; filled by a test, written before each flight."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    srun = bin_ / "srun"
    srun.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("fake_srun.py")}" "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SRUN", str(tmp_path / "special.json"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(REPO)
    return {"env": {}, "cwd": {}, "seen": str(tmp_path / "seen.json")}


@pytest.fixture
def fly(special: dict[str, Any], tmp_path: Path) -> Fly:
    folder = tmp_path / "a run"
    folder.mkdir()

    def go(*, nodes: list[str] = NODES, needs: PreflightNeeds = QUICK, **keywords: Any) -> PreflightResult:
        (tmp_path / "special.json").write_text(json.dumps(special))
        found = run_preflight(nodes=nodes, folders=keywords.pop("folders", [folder]), needs=needs, **keywords)
        assert list(folder.glob(".preflight*")) == [], "its marks are left"
        return found

    return go


def _site(tmp_path: Path, code: str) -> dict[str, str]:
    """An environment in which Python runs `code` at its start."""
    place = tmp_path / f"site{abs(hash(code))}"
    place.mkdir()
    (place / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(place)}


def test_nodes_that_are_well(fly: Fly, special: dict[str, Any], tmp_path: Path) -> None:
    broken = _site(tmp_path, "import sys, os\nsys.stdout.write('noise without an end'); sys.stdout.flush()\n")
    (Path(broken["PYTHONPATH"]) / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    special["env"] = {"n2": broken}
    found = fly(needs=PreflightNeeds(disk_gb=0.0, shm_gb=0.0, slow_below=0.01))
    assert (found.came, found.missing, found.sick, found.slow) == (tuple(NODES), (), {}, {})
    assert found.good and found.blamed() == {}
    assert {tuple(pair["pair"]) for pair in found.facts["pairs"]} == {("n1", "n2"), ("n2", "n3"), ("n3", "n1")}
    assert all(pair["gb_per_s"] > 0 and pair["latency_us"] > 0 for pair in found.facts["pairs"])
    assert all(found.facts["nodes"][node]["rates"][0] > 0 for node in NODES)
    assert all(abs(found.facts["nodes"][node]["clock_ahead_s"]) < 1 for node in NODES)
    assert found.facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    json.dumps(found.facts)
    assert found.lines()[-1].startswith("3 nodes in ")


def test_the_jobs_shape_does_not_shape_the_step(
    fly: Fly, special: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK"):
        monkeypatch.setenv(name, "8")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
    assert fly(nodes=["n1"]).good
    seen = json.loads(Path(special["seen"]).read_text())
    assert {"--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--nodelist=n1", "--overlap"} <= set(seen["options"])
    assert f"--chdir={REPO}" in seen["options"]
    assert seen["env"].get("SLURM_JOB_ID") == "17"
    assert not any(option.startswith("--gres") for option in seen["options"])
    assert not {"SLURM_NTASKS", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_EXPORT_ENV"} & set(seen["env"])


def _alive(token: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if token in line]


def test_a_silent_node_is_missing_in_time(fly: Fly, special: dict[str, Any]) -> None:
    special["silent"] = ["n2"]
    began = time.monotonic()
    found = fly(within_s=2.5)
    assert (found.came, found.missing, found.sick) == (("n1", "n3"), ("n2",), {})
    assert time.monotonic() - began < 30, "it must not wait for a node that is not there"
    assert not found.good
    kind, why = found.blamed()["n2"]
    assert kind == "roll_call_missing" and why.startswith("was not heard in ") and set(found.blamed()) == {"n2"}
    assert any(line.startswith("missing  n2  was not heard") for line in found.lines())
    assert _alive("preflight_node") == []


def test_a_node_on_which_nothing_starts_is_the_only_one_missing(fly: Fly, special: dict[str, Any]) -> None:
    """The scheduler ends the step everywhere: that the others were not heard either is not their fault."""
    special |= {"dead": ["n3"], "dead_s": 0.0}
    found = fly()
    assert found.missing == ("n3",)
    assert "failed on node n3" in " ".join(found.facts["said"])
    assert found.seconds < 30
    assert found.blamed() == {
        "n3": ("roll_call_missing", "nothing could be started there (Communication connection failure)")
    }


def test_a_node_whose_python_does_not_run_is_known_at_once(fly: Fly, special: dict[str, Any]) -> None:
    special["broken"] = ["n2"]
    found = fly(within_s=60)
    assert found.missing == ("n2",) and found.seconds < 30
    assert found.blamed() == {"n2": ("roll_call_missing", "Python did not run there (exited with exit code 2)")}


def test_a_step_that_the_scheduler_refuses_is_no_nodes_fault(fly: Fly, special: dict[str, Any]) -> None:
    special["refused"] = "srun: error: Unable to create step for job 17: Requested nodes are busy"
    found = fly(within_s=60)
    assert found.missing == tuple(NODES) and found.seconds < 30
    assert found.blamed() == {} and not found.good
    assert special["refused"] in found.facts["said"]


def test_a_warning_to_all_steps_does_not_end_it(fly: Fly, special: dict[str, Any], tmp_path: Path) -> None:
    code = (
        "import os, signal, threading, time\ndef warn():\n"
        "    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL: time.sleep(0.01)\n"
        "    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM): os.kill(os.getpid(), number)\n"
        "threading.Thread(target=warn, daemon=True).start()\n"
    )
    special["env"] = {"n1": _site(tmp_path, code)}
    assert fly(nodes=["n1", "n2"], needs=PreflightNeeds(disk_gb=0.0, shm_gb=0.0)).good


def test_another_environment_is_named_with_both_values(fly: Fly, special: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "venv"
    (other / "deepspeed-0.1.dist-info").mkdir(parents=True)
    (other / "deepspeed-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.1\n"
    )
    special["env"] = {"n3": {"PYTHONPATH": str(other)}}
    found = fly()
    assert set(found.sick) == {"n3"}
    assert "other deepspeed: 0.1 (environment" in found.sick["n3"]
    assert f"{found.facts['versions']['deepspeed']} on " in found.sick["n3"]
    assert found.blamed() == {"n3": ("sick", found.sick["n3"])}


def test_other_code_is_named_with_the_file(fly: Fly, special: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "stale"
    for room in ("launch", "train", "eval", "data_prep", "ds_configs"):
        shutil.copytree(REPO / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", "data"))
    (copy / "train" / "loop.py").write_text("# an older view\n")
    special["cwd"] = {"n1": str(copy)}
    found = fly(nodes=["n1", "n2"])
    assert set(found.sick) == {"n1"}
    assert "other code: " in found.sick["n1"] and str(copy) in found.sick["n1"]
    assert "differs in train/loop.py" in found.sick["n1"]


def test_with_another_program_the_nodes_are_compared_with_each_other(
    fly: Fly, special: dict[str, Any], tmp_path: Path
) -> None:
    """The controller may run outside of the container that the ranks run in."""
    other = tmp_path / "venv"
    (other / "torch-1.0.dist-info").mkdir(parents=True)
    (other / "torch-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    special["env"] = {node: {"PYTHONPATH": str(other)} for node in NODES}
    assert fly(program=("env", sys.executable)).good
    assert fly(options=("--container-image=training",)).good
    assert "--container-image=training" in json.loads(Path(special["seen"]).read_text())["options"]
    special["env"].pop("n2")
    found = fly(program=("env", sys.executable))
    assert set(found.sick) == {"n2"} and "1.0 on most nodes" in found.sick["n2"]


def test_a_clock_that_is_off(fly: Fly, special: dict[str, Any], tmp_path: Path) -> None:
    code = "import time\nright = time.time\ntime.time = lambda: right() + {}\n"
    special["env"] = {"n2": _site(tmp_path, code.format(-90)), "n3": _site(tmp_path, code.format(2))}
    found = fly()
    assert set(found.sick) == {"n2"}
    assert "its clock is 90.0 s behind" in found.sick["n2"]
    assert 1.5 < found.facts["nodes"]["n3"]["clock_ahead_s"] < 2.5


def test_a_slow_node(fly: Fly, special: dict[str, Any], tmp_path: Path) -> None:
    code = (
        "import numpy, time\nright = numpy.matmul\n"
        "def matmul(*a, **k):\n    until = time.thread_time() + 0.03\n    while time.thread_time() < until: pass\n    return right(*a, **k)\nnumpy.matmul = matmul\n"
    )
    special["env"] = {"n3": _site(tmp_path, code)}
    found = fly(needs=PreflightNeeds(pairs=False, disk_gb=0.0, shm_gb=0.0, slow_below=0.2))
    assert set(found.slow) == {"n3"} and "% of the nodes' median" in found.slow["n3"]
    assert found.good and found.blamed()["n3"][0] == "slow"


def test_a_node_that_hangs_is_named_with_where(
    fly: Fly, special: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "CHECKS_S", {False: 3.0, True: 3.0})
    special["env"] = {"n1": _site(tmp_path, "import os, time\nos.fsync = lambda descriptor: time.sleep(600)\n")}
    found = fly()
    assert set(found.sick) == {"n1"}
    assert "still in this part: folder " in found.sick["n1"]
    assert _alive("preflight_node") == []


def test_marks_of_a_killed_preflight_are_swept_those_of_another_stay(fly: Fly, tmp_path: Path) -> None:
    place = tmp_path / "two at once"
    place.mkdir()
    old, new = place / ".preflight-old-n1", place / ".preflight-new-n1"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    assert fly(nodes=["n1"], folders=[place]).good
    assert list(place.iterdir()) == [new]


def test_a_folder_that_no_node_has_is_no_nodes_fault(fly: Fly, tmp_path: Path) -> None:
    found = fly(folders=[tmp_path / "nowhere"])
    assert set(found.sick) == set(NODES)
    assert f"{tmp_path / 'nowhere'} there is no such folder" in found.sick["n1"]
    assert found.blamed() == {}


def test_room_and_limits_are_judged() -> None:
    facts = {
        "limits": {"nofile": 256, "memlock": 65536},
        "memory": {"shm_free": 10_000_000, "infiniband": True},
        "folder /data": {"free": 5_000_000_000, "write_s": 0.1},
        "load": {"cpus": 8, "busy": 6.0, "top": ["thief"]},
    }
    verdict = preflight_judge.Verdict()
    reference = {"versions": {}, "code": "", "files": {}, "who": "n1"}
    needs = PreflightNeeds(disk_gb=6.0, shm_gb=0.06)
    preflight_judge.judge({"n1": {"facts": facts, "errors": {"network": "OSError: no interface ib7 here"}}}, needs, reference=reference, verdict=verdict)  # fmt: skip
    sick, notes = "; ".join(verdict.sick["n1"]), "; ".join(verdict.notes["n1"])
    assert "256 open files" in sick and "/dev/shm has 0.01 GB" in sick and "no interface ib7" in sick
    assert "/data has 5.0 GB free, 6 GB are needed" in sick
    assert "6.0 of 8 CPUs are busy with other work (thief)" in notes and "memlock" in notes


def test_the_clock_is_judged_by_the_quickest_round_trip() -> None:
    trips = {"n1": [(100.0, 130.0, 104.0), (200.0, 223.01, 200.02), (300.0, 325.0, 302.0)], "n2": []}
    assert preflight_judge.skews(trips) == {"n1": (23.0, 0.01)}


def test_slow_gpus_are_compared_with_their_like() -> None:
    def report(rates: list[float], name: str) -> dict[str, Any]:
        return {"facts": {"matrix": rates, "gpus": [{"name": name}]}}

    big = {f"n{i}": report([600.0, 610.0], "H100") for i in range(3)}
    found = preflight_judge.slow_nodes(
        {**big, "n3": report([605.0, 300.0], "H100"), "n4": report([90.0], "T4")}, share=0.7
    )
    assert set(found) == {"n3"} and found["n3"].startswith("GPU 1: matrix product 300 TFLOP/s")
    assert preflight_judge.slow_nodes({"n1": report([1.0], "H100")}, share=0.7) == {}


def test_command_outside_of_a_job(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {"PYTHONPATH": str(REPO)}
    code = "import sys; from launch.cli import main; sys.argv[0] = 'rumpun'; sys.exit(main())"

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, "preflight", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    well = ask("--folder", str(tmp_path))
    assert (well.returncode, well.stderr) == (0, "") and "1 node in " in well.stdout
    ill = ask("--folder", str(tmp_path / "missing"), "--interface", "eth99")
    assert ill.returncode == 1
    assert "no such folder" in ill.stdout and "no interface eth99 here; there are" in ill.stdout
    wrong = ask("--within", "0")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --within 0")


@pytest.mark.slow
def test_gpus_that_are_not_there(fly: Fly, special: dict[str, Any]) -> None:
    found = fly(nodes=["n1"], needs=PreflightNeeds(gpus=2, matrix=False, pairs=False, disk_gb=0.0, shm_gb=0.0))
    assert "torch sees 0 GPUs, 2 were asked for" in found.sick["n1"]
    assert "--gres=gpu:2" in json.loads(Path(special["seen"]).read_text())["options"]


@pytest.mark.slow
def test_all_reduce_of_pairs(fly: Fly) -> None:
    """By gloo, as there are no GPUs here: the same code with another backend."""
    found = fly(nodes=["n1", "n2"], needs=PreflightNeeds(matrix=False, reduce="gloo", disk_gb=0.0, shm_gb=0.0))
    assert found.good
    assert [pair["backend"] for pair in found.facts["pairs"] if "backend" in pair] == ["gloo"]
    assert all(pair["gb_per_s"] > 0 for pair in found.facts["pairs"])


def test_a_node_leaves_when_its_controller_is_gone(tmp_path: Path) -> None:
    """Even from a part that hangs: nothing of a preflight may outlive it on a node."""
    ask = json.dumps({"gpus": 0, "matrix": False, "folders": {str(tmp_path): None}})
    hang = _site(tmp_path, "import os, time\nos.fsync = lambda descriptor: time.sleep(600)\n")
    command = [sys.executable, "-m", "launch.slurm.health.preflight_node", "token", ask]
    with subprocess.Popen(
        command, cwd=REPO, env={**os.environ, **hang}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as node:
        assert node.stdout and node.stdin
        while "folder" not in node.stdout.readline():
            pass
        node.stdin.close()
        assert node.wait(30) == 0
