"""Whose licence the base carries, where that stands, and what it takes to publish under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.errors import UserError
from tests.train.hub.model_lab import write_run
from train.hub.licences import LICENCES, BaseLicence, base_licence, in_folder, judge

REPO = "me/demo"


def weigh(base: BaseLicence, *, own: str | None = None, accepted: str | None = None):  # type: ignore[no-untyped-def]
    return judge(base, repo=REPO, own=own, accepted=accepted)


def named(name: str | None) -> BaseLicence:
    return BaseLicence("org/base", False, name, "its card")


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("meta-llama/Llama-2-7b-hf", "llama2"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("meta-llama/Llama-3.2-1B", "llama3.2"),
        ("mistralai/Mistral-7B-v0.1", "apache-2.0"),
        ("Qwen/Qwen2.5-3B", "qwen-research"),
        ("Qwen/Qwen2.5-7B", "apache-2.0"),
        ("Qwen/Qwen3-0.6B", "apache-2.0"),
        ("google/gemma-2-2b", "gemma"),
        ("nobody/base", None),
    ],
)
def test_a_family_is_known_by_its_name(tmp_path: Path, model: str, licence: str | None) -> None:
    found = base_licence(write_run(tmp_path / "run", base={"model": model, "revision": None}))
    assert (found.base, found.name, found.made) == (model, licence, False)


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlanguage: ms\nlicense: apache-2.0\n---\n"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: Qwen-Research\n---\n"}, "qwen-research"),
        ({"README.md": "license: mit\n"}, None),
        ({"config.json": '{"license": "MIT"}'}, "mit"),
        ({"LICENSE.txt": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\n"}, "llama2"),
        ({"LICENSE": "Llama 3.1 Community License Agreement\n"}, "llama3.1"),
        ({"LICENSE": "          Apache License\n     Version 2.0, January 2004\n"}, "apache-2.0"),
        ({"config.json": "not json"}, None),
    ],
)
def test_a_folder_says_its_licence_in_four_ways(tmp_path: Path, files: dict[str, str], licence: str | None) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert in_folder(tmp_path)[0] == licence


def test_a_local_base_gives_its_name_and_licence_files_but_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "bases" / "llama"
    folder.mkdir(parents=True)
    (folder / "LICENSE.txt").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT")
    (folder / "USE_POLICY.md").write_text("no")
    found = base_licence(write_run(tmp_path / "run", base={"model": str(folder), "revision": None}))
    assert (found.base, found.name) == ("llama", "llama2")
    assert [path.name for path in found.texts] == ["LICENSE.txt", "USE_POLICY.md"]


def test_a_free_base_needs_nothing_and_hands_its_licence_on() -> None:
    verdict = weigh(named("apache-2.0"))
    assert (verdict.name, verdict.needs, verdict.warnings) == ("apache-2.0", None, [])
    assert weigh(named("apache-2.0"), own="mit").name == "mit"


@pytest.mark.parametrize("name", sorted(n for n, entry in LICENCES.items() if entry.terms != "free"))
def test_a_base_that_restricts_warns_and_needs_its_flag(name: str) -> None:
    verdict = weigh(named(name), own="mit")
    assert verdict.needs is not None
    assert verdict.needs.startswith(f"--accept-licence {name}")
    assert verdict.warnings
    assert verdict.name == name, "a restricting licence is not replaced by one of our own"
    assert weigh(named(name), accepted=name).needs is None


def test_a_base_that_forbids_says_so() -> None:
    assert "does not let changed versions be passed on" in weigh(named("cc-by-nd-4.0")).warnings[0]


def test_an_unknown_licence_needs_the_users_word() -> None:
    assert "--accept-licence NAME" in (weigh(named(None)).needs or "")
    assert "--accept-licence own-1.0" in (weigh(named("own-1.0")).needs or "")
    verdict = weigh(named("own-1.0"), accepted="own-1.0")
    assert (verdict.needs, verdict.name) == (None, "own-1.0")
    assert "--accept-licence" in (weigh(base_licence(None)).needs or "")


def test_accepting_another_licence_than_the_bases_is_a_mistake() -> None:
    with pytest.raises(UserError, match="the base's licence is llama2"):
        weigh(named("llama2"), accepted="mit")
    with pytest.raises(UserError, match="no licence identifier"):
        weigh(named("llama2"), own="My Licence")


def test_a_base_from_a_seed_brings_no_licence(run: Path) -> None:
    verdict = weigh(base_licence(run))
    assert verdict.needs is None
    assert "no licence is stated" in verdict.warnings[0]
    assert weigh(base_licence(run), own="mit").warnings == []


def test_every_entry_says_where_to_read_it() -> None:
    for name, entry in LICENCES.items():
        assert entry.source.startswith("https://"), name
        assert entry.terms == "free" or entry.demands, name
    json.dumps(sorted(LICENCES))
