"""Every command and every example file of docs/ runs, in a folder with nothing else in it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PAGES = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))
DOCS = [
    page for page in _PAGES if page.name not in ("slurm.md", "cluster-admin.md")
]  # tests/launch/slurm/test_pages.py
TINY = Path(__file__).parent / "launch" / "tiny.toml"
_STEP = re.compile(r"^`([\w./-]+)`:\n\n```(\w*)\n(.*?)```|^```sh\n(.*?)```", re.DOTALL | re.MULTILINE)


def steps(text: str) -> list[tuple[str, str]]:
    """("file NAME", content) and ("run", command) in the order of the page."""
    found = []
    for match in _STEP.finditer(text):
        name, _, content, commands = match.groups()
        if name:
            found.append((f"file {name}", content))
        else:
            lines = commands.replace("\\\n", " ").splitlines()
            found += [("run", line.split("  #")[0].strip()) for line in lines if line.strip()]
    return found


def smaller(content: str) -> str:
    """The same file laid on the smallest recipe: tests/launch/tiny.toml differs from the demo in sizes alone."""
    return content.replace('extends = "demo"', f'extends = "{TINY}"')


def test_there_are_pages() -> None:
    assert {page.name for page in DOCS} >= {"data.md", "mining.md"}
    for page in DOCS:
        assert any(kind == "run" for kind, _ in steps(page.read_text(encoding="utf-8"))), page.name


@pytest.mark.slow
@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_every_step_of_a_page_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page.name == "publishing.md":  # a finished run, which other tests share
        shutil.copytree(request.getfixturevalue("tiny_run"), tmp_path / "runs" / "tiny")
    for kind, content in steps(page.read_text(encoding="utf-8")):
        if kind != "run":
            path = tmp_path / kind.removeprefix("file ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(smaller(content), encoding="utf-8")
            continue
        words = shlex.split(content)
        assert words[0] == "rumpun", content
        words = [str(TINY) if word == "demo" else word.replace("runs/demo", "runs/tiny") for word in words[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "launch.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{content}: exit {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
        assert (done.stdout + done.stderr).strip(), content
