"""`make` from nothing: what is missing is named in one line, and an interrupted installation is taken up again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def _command(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH that holds a few plain tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env", "df", "awk", "mkdir", "dirname", "rm", "cc", "touch", "echo"):
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
        elif name == "cc":
            _command(folder, "cc", "exit 0")
    return folder


def _venv(repo: Path, tools: Path, folder: Path, *python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(repo / ".ci" / "venv"), str(folder), *python],
        env={"PATH": str(tools)},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def _refused(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    assert answer.returncode == 1
    lines = answer.stderr.splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("error: ")
    for word in (". Fix: ", *words):
        assert word in lines[0]


def test_no_python(repo: Path, tools: Path, tmp_path: Path) -> None:
    _command(tools, "python3", 'echo "Python 3.9" >&2; exit 1')
    _command(tools, "python3.12", 'echo "pyenv: python3.12: command not found" >&2; exit 127')
    _refused(_venv(repo, tools, tmp_path / "v"), "no Python 3.11 or newer", "apt-get install python3")
    _refused(_venv(repo, tools, tmp_path / "v", "python9"), "PYTHON=python9", "make PYTHON=")


def test_no_venv_module(repo: Path, tools: Path, tmp_path: Path) -> None:
    _command(tools, "python3", f'case "$*" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"')
    _refused(_venv(repo, tools, tmp_path / "v"), "no venv/ensurepip module", "apt-get install python3-venv")


def test_a_full_disk_and_no_compiler(repo: Path, tools: Path, tmp_path: Path) -> None:
    _command(tools, "python3", f'exec {sys.executable} "$@"')
    (tools / "df").unlink()
    _command(tools, "df", 'echo "Filesystem"; echo "/dev/x 9000 8000 1000 90% /"')
    _refused(_venv(repo, tools, tmp_path / "v"), "only 1000 MB free", "at least 4 GB")
    (tools / "cc").unlink()
    answer = _venv(repo, tools, tmp_path / "v")
    assert answer.returncode == 1
    assert "note: no C compiler" in answer.stderr
    assert not (tmp_path / "v").exists()


@needs_make
@pytest.mark.slow
def test_an_interrupted_installation_is_taken_up_again(repo: Path, tmp_path: Path) -> None:
    """The real Makefile and the real venv; only the project is a small one that needs nothing from the network."""
    for name in ("Makefile", ".ci"):
        source = repo / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "constraints.txt").write_text("")
    # pip is replaced once the venv is there: the first call dies, the second makes the command.
    fake = tmp_path / "python3"
    log = tmp_path / "log"
    _command(
        tmp_path,
        "python3",
        f"""
if [ "$1" = -m ] && [ "$2" = venv ]; then
  mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0
fi
if [ "$1" = -m ] && [ "$2" = pip ] && [ "$3" = install ]; then
  echo install >> {log}
  [ "$(wc -l < {log})" = 1 ] && exit 1
  printf '#!/bin/bash\\necho "ran $*"\\n' > .venv/bin/rumpun; chmod +x .venv/bin/rumpun; exit 0
fi
exec {sys.executable} "$@"
""",
    )

    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        # This test may itself run under `make test`.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))
        }
        return subprocess.run(
            ["make", f"PYTHON={fake}", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    first = make("demo")
    assert first.returncode != 0
    assert "error: pip could not install rumpun" in first.stderr
    second = make("demo")
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[-1] == "ran demo"
    third = make("demo", "ARGS=--seed 3")
    assert third.stdout.splitlines() == ["ran demo --seed 3"], "nothing is installed when all is up to date"
    assert log.read_text().split() == ["install"] * 2
    later = (tmp_path / "log").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    make("demo")
    assert log.read_text().split() == ["install"] * 3, "new constraints install again"


@needs_make
def test_help_names_every_target(repo: Path) -> None:
    answer = subprocess.run(["make", "help"], cwd=repo, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0
    for target in ("demo", "test", "lint", "bench", "clean"):
        assert f"make {target}" in answer.stdout
