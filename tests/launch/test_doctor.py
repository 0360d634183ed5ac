from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from launch import doctor


def test_this_machine_can_work_and_every_lack_has_a_fix(tmp_path: Path) -> None:
    found = doctor.checks(tmp_path / "not" / "yet" / "there")
    assert len({check.name for check in found}) == len(found)
    for check in found:
        assert check.found
        assert (check.status == "OK") == (check.fix == ""), check
        assert "\n" not in check.fix + check.found
    status = {check.name: check.status for check in found}
    assert status["torch"] == status["deepspeed"] == status["transformers"] == "OK"


def test_versions_are_those_that_python_would_import(tmp_path: Path) -> None:
    import torch

    found = {check.name: check.found for check in doctor.checks(tmp_path)}
    assert found["torch"].startswith(torch.__version__)
    assert found["Python"] == sys.version.split()[0]


@pytest.mark.parametrize(
    ("requirement", "status", "words"),
    [
        ("numpy>=1", "OK", ""),
        ("numpy>=99", "MISS", "needs >=99"),
        ("no-such-package-of-rumpun>=1", "MISS", "not installed"),
    ],
)
def test_a_missing_or_old_package_is_required(requirement: str, status: str, words: str) -> None:
    check = doctor.check_version(Requirement(requirement))
    assert check.status == status
    assert words in check.found
    assert (requirement in check.fix) == (status == "MISS")


def test_exit_code_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.print_doctor(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("OK", "WARN") for line in lines[:-1])
    assert lines[-1].endswith(" 0 MISS")


def test_a_miss_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("no-such-package-of-rumpun",))
    assert doctor.print_doctor(tmp_path) == 1
    assert "MISS  no-such-package-of-rumpun" in capsys.readouterr().out


def test_too_many_threads_and_nonsense_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    assert doctor._threads().status == "WARN"
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert "must be a number" in doctor._threads().fix
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert doctor._threads().status == "OK"


def test_half_a_slurm_client_is_named() -> None:
    assert doctor._slurm(lambda name: None).found == "no SLURM commands"
    half = doctor._slurm(lambda name: name if name == "sbatch" else None)
    assert half.status == "WARN"
    assert "srun" in half.found


def test_the_table_on_a_terminal(tmp_path: Path, repo: Path) -> None:
    code = (
        "from pathlib import Path; from launch.doctor import print_doctor; raise SystemExit(print_doctor(Path('runs')))"
    )
    answer = subprocess.run(
        ["script", "-qec", f'{sys.executable} -c "{code}"', "/dev/null"],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stdout
    assert "what" in answer.stdout
    assert "0 MISS" in answer.stdout
