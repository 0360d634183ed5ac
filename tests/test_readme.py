"""Every command in the README runs: the quick ones here, on the smallest pipeline; make targets are read for their names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
TINY = Path(__file__).parent / "launch" / "tiny.toml"


def commands(text: str) -> list[str]:
    """Command lines of all `sh` blocks, without comments."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [line.split("  #")[0].split(" #")[0].strip() for line in lines if line.strip()]


RUMPUN = [c for c in commands(README) if c.startswith("rumpun")]


def run(words: list[str], cwd: Path, *, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *words], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
    return done.stdout


def smaller(words: list[str]) -> list[str]:
    """The same command on the smallest recipe: `demo` becomes tests/launch/tiny.toml, which differs in sizes alone."""
    if words[0] == "demo":
        words = ["run", "demo", *words[1:]]
    if words[0] == "run" and words[1] == "demo":
        words = ["run", str(TINY), *words[2:]]
    return [w.replace("runs/demo", "runs/tiny") for w in words]


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text()
    named = {c.split()[1] for c in commands(README) if c.startswith("make ")}
    assert named == {"demo", "test"}
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in named)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_rumpun_command_of_the_readme_runs(tiny_run: Path, tmp_path: Path) -> None:
    # what `rumpun demo` makes first; the command with a `--run` of its own still makes everything from nothing
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny", symlinks=True)
    (tmp_path / "TEXTS.txt").write_text(
        "Bantuan banjir boleh dimohon di pejabat daerah.\nNasi lemak sedap.\nHujan lebat.\n"
    )
    assert len(RUMPUN) >= 9
    for line in RUMPUN:
        words = smaller(shlex.split(line)[1:])
        if words[0] in ("submit", "status", "logs", "history", "cancel"):  # tests/launch/slurm/test_pages.py
            continue
        if "--data" in words:  # sizes of its own: tests/test_real_data.py runs it
            continue
        if words[0] == "doctor":
            subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=tmp_path, check=False, timeout=120)
            continue
        out = run(words, tmp_path)
        assert out.strip(), line
    for stage in ("prep", "mine", "synth", "truncate", "probe", "pretrain", "finetune", "eval", "export", "report"):
        assert f"`{stage}`" in README or f"rumpun {stage}" in README
        assert "nothing to do" in run([stage, str(TINY)], tmp_path)


def test_the_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    text = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert text
    (tmp_path / "mine.toml").write_text(text[1])
    assert 'loss = "margin"' in run(["recipe", "show", str(tmp_path / "mine.toml")], tmp_path)
