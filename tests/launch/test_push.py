"""`rumpun push` as a user types it: a dry run that needs no network, what `--yes` sends, and mistakes in one line."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from data_prep.errors import UserError
from launch.push_command import find_model, push_command
from tests.train.hub.fake_hub import TOKEN, FakeHub, running
from tests.train.hub.model_lab import write_run

REPO = "mesolitica/demo"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running(FakeHub()) as started:
        monkeypatch.setenv("HF_ENDPOINT", started.url)
        yield started


def push(*words: object) -> str:
    """What the command prints, errors raised."""
    app = typer.Typer()
    app.command()(push_command)
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_dry_run_works_without_network_and_token(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    told = push(run, REPO, "--revision", "v1")
    weights = run / "export" / "model" / "model.safetensors"
    assert f"sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}" in told
    assert "not compared: no answer that can be used: offline mode is on" in told
    assert "parity:  1.5e-07 over 72 texts, allowed 1e-05" in told
    assert "base: the run made its base from a seed" in told
    assert "  | # demo" in told
    assert "nothing was sent: this is a dry run" in told


def test_a_dry_run_asks_and_changes_nothing(hub: FakeHub, run: Path) -> None:
    assert f"{REPO} is not there yet" in push(run, REPO)
    push(run, REPO, "--yes", "--revision", "v1", "--licence", "mit", "--message", "first")
    before = len(hub.requests)
    assert "its tag v1 holds these files already" in push(run, REPO, "--revision", "v1", "--licence", "mit")
    (run / "export" / "model" / "tokenizer_config.json").write_text("{}")
    told = push(run, REPO, "--revision", "v1", "--licence", "mit")
    assert "0 new, 1 differ" in told
    assert "tokenizer_config.json" in told.split("needs --overwrite")[0]
    assert "needs:   --unproven: tokenizer_config.json was changed after the export" in told
    assert all(method == "GET" for method, _, _ in hub.requests[before:])


def test_a_push_sends_the_folder_and_the_card_of_the_run(hub: FakeHub, run: Path) -> None:
    told = push(run, REPO, "--yes", "--revision", "v1", "--licence", "mit")
    assert f"published: {hub.url}/{REPO} at " in told
    assert "tagged: v1" in told
    there = hub.files(REPO)
    card = there.pop("README.md").decode()
    model = run / "export" / "model"
    assert there == {p.relative_to(model).as_posix(): p.read_bytes() for p in model.rglob("*") if p.is_file()}
    assert 'license: "mit"' in card
    assert "0.625 [0.525, 0.725]" in card
    assert "nothing was sent" in push(run, REPO, "--yes", "--revision", "v1", "--licence", "mit")


def test_a_card_can_be_written_edited_and_given_back(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    push(run, REPO, "--write-card", card)
    card.write_text(card.read_text() + "\nMore.\n")
    push(run, REPO, "--card", card, "--yes")
    assert hub.files(REPO)["README.md"] == card.read_bytes()


def test_a_base_that_restricts_needs_its_flag_and_brings_its_papers(hub: FakeHub, tmp_path: Path) -> None:
    base = tmp_path / "llama"
    base.mkdir()
    (base / "LICENSE.txt").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT")
    run = write_run(tmp_path / "run", base={"model": str(base), "revision": None})
    assert "needs:   --accept-licence llama2" in push(run, REPO)
    with pytest.raises(UserError, match=r"not without your word. Fix: --accept-licence llama2"):
        push(run, REPO, "--yes")
    assert hub.repos == {}
    assert "warning: the base's licence sets conditions" in push(run, REPO, "--yes", "--accept-licence", "llama2")
    there = hub.files(REPO)
    assert there["LICENSE.txt"] == b"LLAMA 2 COMMUNITY LICENSE AGREEMENT"
    assert b"LLAMA 2 Community License, Copyright (c) Meta" in there["NOTICE"]
    assert b'license: "llama2"' in there["README.md"]


def test_a_folder_without_proof_needs_the_users_word(hub: FakeHub, run: Path) -> None:
    (run / "export" / "parity.json").unlink()
    with pytest.raises(UserError, match=r"--unproven: no parity.json lies beside it"):
        push(run, REPO, "--yes")
    assert hub.repos == {}
    push(run, REPO, "--yes", "--unproven")
    assert "Comparison with the training model: not recorded" in hub.files(REPO)["README.md"].decode()


def test_the_token_is_neither_printed_nor_published(hub: FakeHub, run: Path) -> None:
    told = push(run, REPO, "--yes") + push(run, REPO)
    assert TOKEN not in told
    (run / "recipe.toml").write_text(f'name = "{TOKEN}"\n')
    push(run, "mesolitica/other", "--yes")
    (run / "export" / "model" / "config.json").write_text(f'{{"a": "{TOKEN}"}}')
    with pytest.raises(UserError, match="holds an access token"):
        push(run, "mesolitica/third", "--yes", "--unproven")
    assert not any(TOKEN.encode() in data for data in hub.blobs.values())


def test_what_is_given_as_the_model(run: Path, tmp_path: Path) -> None:
    model = run / "export" / "model"
    assert find_model(run, None) == (model, run)
    assert find_model(model, None) == (model, run)
    assert find_model(run / "export", None) == (model, run)
    alone = shutil.copytree(model, tmp_path / "alone")
    assert find_model(alone, None) == (alone, None)
    assert find_model(alone, run) == (alone, run)


def test_mistakes_are_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.rmtree(run / "export")
    mistakes: list[tuple[str, tuple[object, ...]]] = [
        ("is a run without an exported model", (run, REPO)),
        ("no such folder", (tmp_path / "none", REPO)),
        ("must be ORG/NAME", (run, "demo")),
        ("is no name for a tag", (run, REPO, "--revision", "main")),
        ("is no run folder", (run, REPO, "--run", tmp_path)),
        ("is no file in a folder", (run, REPO, "--write-card", tmp_path / "none" / "card.md")),
        ("must be SOURCE=LICENCE", (run, REPO, "--data-licence", "mit")),
    ]
    for line, words in mistakes:
        with pytest.raises(UserError, match=line) as caught:
            push(*words)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong…token")
    with pytest.raises(UserError, match="holds characters that no token has") as caught:
        push(run, REPO)
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(UserError, match="is no http"):
        push(run, REPO)
