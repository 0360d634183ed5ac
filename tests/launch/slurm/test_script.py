"""Job scripts: compared with golden texts, run with a `rumpun` that tells what it got, and read by a real SLURM."""

from __future__ import annotations

import itertools
import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.recipe import load_recipe
from launch.slurm.clusters.profile import ClusterProfile, load_profile
from launch.slurm.submitting.directives import directives, setup
from launch.slurm.submitting.jobs import NAMES, Job, jobs_of
from launch.slurm.submitting.script import (
    TEMPLATES,
    Directive,
    comment,
    export,
    quote_but_names,
    quote_for_sbatch,
    render,
)

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    (profile, job)
    for profile in ("gpu-preemptable", "apptainer-no-requeue", "cpu-lab")
    for job in ("prepare", "finetune", "eval")
]
STAGES = ["corpus", "tokenizer", "tokens", "mine", "gate", "gate_pairs", "base", "probe", "truncate"]
STAGES += ["pretrain", "finetune", "eval", "export", "report"]
NASTY = [
    "plain", "two words", "it's", 'a "quoted" word', "; rm -rf x", "$(touch pwned)", "`touch pwned`", "$HOME", "a\\b",
    "#no comment", "-n", "--", "*", "~", "!!", "a&&b|c>d<e", "{x,y}", "", "é ∑ 你好", "\\'\"", "50%j", "a=b", "'", "\\",
]  # fmt: skip


def the_jobs(profile: ClusterProfile, *overrides: str) -> dict[str, Job]:
    recipe, _ = load_recipe("demo", ["slurm.nodes=4", "pretrain.batch_rows=64", *overrides])
    return {job.name: job for job in jobs_of(recipe, profile, stages=STAGES, to_do=STAGES)}


def text_of(profile: ClusterProfile, job: Job, arguments: list[str], program: str = "/project/env/bin/rumpun") -> str:
    run = Path("/scratch/lab/runs/demo")
    told = directives(job, run=run, profile=profile, start=Path("/project/rumpun"))
    return render(
        TEMPLATES / f"{job.name}.sbatch", directives=told, setup=setup(profile), arguments=arguments, program=program
    )


def telling(folder: Path) -> Path:
    """A program that writes its arguments and its environment beside itself, each ended by a NUL."""
    folder.mkdir(exist_ok=True)
    place = folder / "rumpun"
    place.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >"${0%/*}/arguments"\nenv -0 >"${0%/*}/environment"\n')
    place.chmod(place.stat().st_mode | stat.S_IXUSR)
    return place


def run_text(text: str, folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a batch shell would, in an environment with almost nothing."""
    script = folder / "script.sbatch"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    return subprocess.run(
        ["bash", script, *words], cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **env},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def got(folder: Path) -> tuple[list[str], dict[str, str]]:
    arguments = (folder / "arguments").read_bytes().decode().split("\0")[:-1]
    lines = (folder / "environment").read_bytes().decode().split("\0")[:-1]
    return arguments, dict(line.partition("=")[::2] for line in lines)


@pytest.mark.parametrize(("profile", "job"), CASES)
def test_scripts_equal_the_golden_texts(profile: str, job: str) -> None:
    known = load_profile(profile)
    text = text_of(known, the_jobs(known)[job], ["/project/rumpun/recipes/demo.toml", "--set", "slurm.nodes=4"])
    golden = GOLDEN / f"{profile}-{job}.sbatch"
    if os.environ.get("RUMPUN_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), "read the difference; if it is meant: RUMPUN_WRITE_GOLDEN=1 pytest this file"


@pytest.mark.parametrize(("profile", "job"), CASES)
def test_golden_texts_run(profile: str, job: str, tmp_path: Path) -> None:
    golden = (GOLDEN / f"{profile}-{job}.sbatch").read_text()
    program = telling(tmp_path / "env")
    module = 'module() { echo "module $*" >>modules; }\nexport -f module\n'
    text = golden.replace("RUMPUN=/project/env/bin/rumpun\n", f"{module}RUMPUN={shlex.quote(str(program))}\n")
    if load_profile(profile).modules:  # the function must be there before its first use
        text = text.replace("export SLURM_EXPORT_ENV=ALL\n", f"export SLURM_EXPORT_ENV=ALL\n{module}")
    answer = run_text(text.replace("/scratch/$USER", str(tmp_path / "node")), tmp_path, USER="ali")
    assert (answer.returncode, answer.stderr) == (0, "")
    arguments, environment = got(tmp_path / "env")
    assert arguments == ["job", job, "/project/rumpun/recipes/demo.toml", "--set", "slurm.nodes=4"]
    assert environment["SLURM_EXPORT_ENV"] == "ALL"
    for name, value in load_profile(profile).environment.items():
        assert environment[name] == value
    if interface := load_profile(profile).interface:
        assert environment["NCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"] == interface
    if modules := load_profile(profile).modules:
        assert (tmp_path / "modules").read_text().splitlines() == [f"module load {name}" for name in modules]


@pytest.mark.parametrize("name", NAMES)
def test_templates_run_by_hand(name: str, tmp_path: Path) -> None:
    text = (TEMPLATES / f"{name}.sbatch").read_text()
    (tmp_path / ".venv").mkdir()
    telling(tmp_path / ".venv" / "bin")
    answer = run_text(text, tmp_path, "my recipe.toml", "--set", "a=$(b) c", SLURM_SUBMIT_DIR=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert got(tmp_path / ".venv" / "bin")[0] == ["job", name, "my recipe.toml", "--set", "a=$(b) c"]
    assert run_text(text, tmp_path, SLURM_SUBMIT_DIR=str(tmp_path)).returncode == 2  # no recipe
    missing = run_text(text, tmp_path, "demo", SLURM_SUBMIT_DIR=str(tmp_path / "elsewhere"))
    assert missing.returncode == 2
    assert f"{tmp_path}/elsewhere/.venv/bin/rumpun" in missing.stderr and "RUMPUN=" in missing.stderr
    named = run_text(text, tmp_path, "demo", RUMPUN=str(tmp_path / ".venv" / "bin" / "rumpun"))
    assert named.returncode == 0


def test_templates_ask_by_hand_for_what_rendering_asks_for() -> None:
    for name, job in the_jobs(ClusterProfile()).items():
        by_hand = {line for line in (TEMPLATES / f"{name}.sbatch").read_text().splitlines() if line[:8] == "#SBATCH "}
        rendered = text_of(ClusterProfile(), job, ["demo"])
        for option in ("--signal", "--requeue", "--open-mode", "--time"):
            mine = [line for line in by_hand if line.startswith(f"#SBATCH {option}")]
            assert len(mine) == 1 and mine[0] in rendered, (name, option)


def test_every_directive_has_a_comment_of_its_own() -> None:
    for profile, job in itertools.product([p for p, _ in CASES[::3]], NAMES):
        lines = text_of(load_profile(profile), the_jobs(load_profile(profile))[job], ["demo"]).splitlines()
        for before, line in itertools.pairwise(lines):
            if line.startswith("#SBATCH"):
                assert before.startswith("# ") and not before.startswith("# >>>"), line
        # sbatch stops reading at the first line that is neither blank nor a comment
        first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
        assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_learned_values_cite_their_fact() -> None:
    facts = {
        "partition": "sinfo: gpu* up",
        "max_time_min": "scontrol show partition: MaxTime=10:00:00",
        "qos": "unused",
    }
    profile = ClusterProfile(name="learned", partition="gpu", max_time_min=600, facts=facts)
    told = directives(the_jobs(profile)["finetune"], run=Path("/r/demo"), profile=profile)
    whys = {directive.option: directive.why for directive in told}
    assert "learned" in whys["partition"] and "sinfo: gpu* up" in whys["partition"]
    assert "MaxTime=10:00:00" in whys["time"] and "The recipe asks for more" in whys["time"]
    assert "qos" not in whys


@pytest.mark.parametrize("value", NASTY)
def test_arguments_arrive_unchanged(value: str, tmp_path: Path) -> None:
    program = telling(tmp_path / "my env; touch pwned")
    given = [value or "x", "--set", f"about={value}", "--run", value, "--data", f"/d/{value}"]
    profile = ClusterProfile(environment={"MY_VALUE": value}, modules=["cuda"])
    job = the_jobs(ClusterProfile())["finetune"]
    text = text_of(profile, job, given, str(program)).replace("module load cuda || exit 2\n", "").replace(
        "type module >/dev/null 2>&1 || . /etc/profile\n", ""
    )  # fmt: skip
    answer = run_text(text, tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    arguments, environment = got(program.parent)
    assert arguments == ["job", "finetune", *given]
    assert environment["MY_VALUE"] == value
    assert not list(tmp_path.rglob("pwned"))


def as_sbatch_reads(line: str) -> list[str]:
    """The words of a directive, by the rules of sbatch: both quotes, and a backslash keeps the next character, also
    inside single quotes; an unquoted # begins a comment."""
    words: list[str] = []
    word, quote, letters = "", "", iter(line)
    for letter in letters:
        if letter == "\\":
            word += next(letters)
        elif quote:
            quote, word = ("", word) if letter == quote else (quote, word + letter)
        elif letter in "\"'":
            quote = letter
        elif letter == "#":
            break
        elif letter == " ":
            words, word = [*words, word], ""
        else:
            word += letter
    return [*words, word]


@pytest.mark.parametrize("value", [value for value in NASTY if value])
def test_directives_are_read_as_they_were_meant(value: str) -> None:
    line = Directive("job-name", value, "").line.removeprefix("#SBATCH ")
    assert as_sbatch_reads(line) == [f"--job-name={value}"]


def test_only_names_of_variables_are_replaced_in_folders(tmp_path: Path) -> None:
    nasty = '/local/$USER/${USER}x/$(touch pwned)`id`/"q"\\$1$'
    answer = run_text(f"printf %s {quote_but_names(nasty)}", tmp_path, USER="ali")
    assert answer.stdout == '/local/ali/alix/$(touch pwned)`id`/"q"\\$1$'
    assert not (tmp_path / "pwned").exists()


def test_line_breaks_are_refused_everywhere() -> None:
    job = the_jobs(ClusterProfile())["finetune"]
    bad = "a\n#SBATCH --uid=0"
    for make in (
        lambda: text_of(ClusterProfile(), job, ["demo", "--set", bad]),
        lambda: text_of(ClusterProfile(), job, ["demo"], program=bad),
        lambda: directives(job, run=Path(f"/runs/{bad}"), profile=ClusterProfile())[0].line,
        lambda: quote_for_sbatch(bad, what="--partition"),
        lambda: quote_for_sbatch("a\rb", what="--partition"),
        lambda: export("A", bad),
        lambda: quote_for_sbatch("\udcff", what="--chdir"),
    ):
        with pytest.raises(UserError) as error:
            make()
        assert "\n" not in str(error.value)
    # a comment may say anything: it stays a comment
    assert comment("1\n#SBATCH --uid=0\nrm -rf x") == ["# 1 #SBATCH --uid=0 rm -rf x"]


def test_what_cannot_be_written_is_said() -> None:
    job = the_jobs(ClusterProfile())["finetune"]
    with pytest.raises(UserError, match="backslash"):
        directives(job, run=Path("/runs/a\\b"), profile=ClusterProfile())
    with pytest.raises(UserError, match="secret"):
        setup(ClusterProfile(environment={"HF_TOKEN": "hf_x"}))
    with pytest.raises(UserError, match="digits"):
        export("A B", "x")
    with pytest.raises(UserError, match="cannot be read"):
        render(Path("/nowhere.sbatch"), directives=[], setup=[], arguments=[], program="x")


def test_a_template_without_its_blocks_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "finetune.sbatch"
    template.write_text((TEMPLATES / "finetune.sbatch").read_text().replace("# <<< environment", "# environment ends"))
    with pytest.raises(UserError, match="'environment'"):
        render(template, directives=[], setup=[], arguments=[], program="x")


def test_what_an_admin_writes_outside_the_blocks_stays(tmp_path: Path) -> None:
    template = tmp_path / "finetune.sbatch"
    template.write_text((TEMPLATES / "finetune.sbatch").read_text().replace("exec ", "ulimit -c 0\nexec "))
    text = render(template, directives=[], setup=[], arguments=["\\1 \\g<0>"], program="/bin/x")
    assert "\nulimit -c 0\nexec " in text and "'\\1 \\g<0>'" in text


def test_an_edge_of_a_path_is_no_pattern() -> None:
    told = directives(the_jobs(ClusterProfile())["finetune"], run=Path("/r/50%j"), profile=ClusterProfile())
    assert [d.line for d in told if d.option == "output"] == ["#SBATCH --output=/r/50%%j/logs/slurm/finetune-%j.out"]
