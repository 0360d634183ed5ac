"""The rules of the house that a reader cannot check by eye: who imports whom, sizes, docstrings, start-up time."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
ROOMS = ("data_prep", "train", "eval", "launch")  # a room may import those to its left
FILES = sorted(path for room in ROOMS for path in (REPO / room).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}


def _name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "."
            else:
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def _who_imports(package: str) -> set[str]:
    return {
        _name(path)
        for path, tree in TREES.items()
        for _, module in _imports(tree)
        if module == package or module.startswith(package + ".")
    }


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 20
    assert {path.relative_to(REPO).parts[0] for path in FILES} == set(ROOMS)


def test_no_room_imports_upwards() -> None:
    wrong = []
    for path, tree in TREES.items():
        level = ROOMS.index(path.relative_to(REPO).parts[0])
        for line, module in _imports(tree):
            first = module.split(".")[0]
            if first in ROOMS[level + 1 :] or first in ("", "tests", "benchmarks"):
                wrong.append(f"{_name(path)}:{line} imports {module}")
    assert wrong == []


def test_only_three_files_know_deepspeed() -> None:
    assert _who_imports("deepspeed") <= {"train/engine.py", "train/zero_state.py", "train/model_folder.py"}


def test_only_shards_and_the_readers_of_corpora_know_parquet() -> None:
    inside = {name for name in _who_imports("pyarrow.parquet") if name.startswith(("data_prep/", "train/"))}
    assert inside <= {"data_prep/shards.py", "data_prep/corpus/readers.py"}


def test_only_launch_knows_slurm() -> None:
    words = re.compile(r"\b(sbatch|srun|squeue|sacct|scancel|scontrol|submitit|SLURM_[A-Z_]+)\b")
    wrong = []
    for path, tree in TREES.items():
        if _name(path).startswith("launch/"):
            continue
        docstrings = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            if is_text and words.search(node.value):
                wrong.append(f"{_name(path)}:{node.lineno} {node.value!r}")
        wrong += [f"{_name(path)}:{line} {module}" for line, module in _imports(tree) if words.search(module)]
    assert wrong == []


def test_nothing_unsafe_is_loaded() -> None:
    wrong = []
    for path, tree in TREES.items():
        wrong += [
            f"{_name(path)}:{line} imports {module}"
            for line, module in _imports(tree)
            if module.split(".")[0] in ("pickle", "dill", "shelve", "cloudpickle")
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.keyword) or not isinstance(node.value, ast.Constant):
                continue
            if (node.arg, node.value.value) in {
                ("trust_remote_code", True),
                ("allow_pickle", True),
                ("weights_only", False),
            }:
                wrong.append(f"{_name(path)}:{node.value.lineno} {node.arg}={node.value.value}")
    assert wrong == []


def test_no_file_holds_two_concepts() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def _has_docstring(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node) is not None


def _undocumented(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            overload = any(
                isinstance(mark, ast.Name) and mark.id in ("overload", "override") for mark in child.decorator_list
            )
            if not _has_docstring(child) and not overload:
                yield f"{prefix}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from _undocumented(child, f"{prefix}{child.name}.")


def test_everything_public_is_documented() -> None:
    missing = [f"{_name(path)}: module" for path, tree in TREES.items() if not _has_docstring(tree)]
    missing += [name for path, tree in TREES.items() for name in _undocumented(tree, f"{_name(path)}: ")]
    assert missing == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_quick(arguments: list[str], tmp_path: Path) -> None:
    code = "import sys; from launch.cli import main; sys.argv[0] = 'rumpun'; sys.exit(main())"
    used_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert answer.returncode == 0, answer.stderr
        assert "Usage" in answer.stdout
        used_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used_s) < 0.6, f"seconds of CPU: {used_s}; a heavy import sits outside a function"


def _keys(value: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _keys(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_deepspeed_table_has_every_key_and_no_other() -> None:
    folder = REPO / "ds_configs"
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert set(files) == {f"zero{n}.json" for n in range(4)} | {"zero2_offload.json", "zero3_offload.json"}
    table = re.findall(r"^\| `([a-z0-9_.]+)` \| (.+) \|$", (folder / "README.md").read_text(), flags=re.MULTILINE)
    described = {key: reason for key, reason in table if not key.endswith(".json")}
    assert set(described) == {key for content in files.values() for key in _keys(content)}
    assert all(len(reason) > 15 or reason.startswith("as for") for reason in described.values())
    for name, content in files.items():
        assert content["zero_optimization"]["stage"] == int(name[4]), name
        assert ("offload_optimizer" in content["zero_optimization"]) == ("offload" in name), name


def test_constraints_pin_everything_declared() -> None:
    import tomllib

    from packaging.requirements import Requirement

    pins = {}
    for line in (REPO / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line), f"not an exact, portable pin: {line}"
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, project["dependencies"] + extras):
        assert requirement.name in pins, f"constraints.txt lacks {requirement.name}"
        assert requirement.specifier.contains(pins[requirement.name]), str(requirement)
    assert "rumpun" not in pins


def _project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPO,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [REPO / name for name in listed.stdout.decode().split("\0") if name and (REPO / name).is_file()]


def test_no_path_of_one_machine_is_written_down() -> None:
    places = re.compile(
        rb"(?<![\w.$}/])/(?:" + rb"|".join([b"work", b"root", b"home/[a-z]\\w*", b"tmp/[a-z]\\w*"]) + rb")/"
    )
    wrong = []
    for path in _project_files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.splitlines(), start=1):
            if places.search(line):
                wrong.append(f"{_name(path)}:{number} {line.decode(errors='replace').strip()[:120]}")
    assert wrong == []
