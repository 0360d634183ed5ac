"""Publishing through the real client library and real HTTP: what arrives, what is never touched, and what goes wrong."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from tests.train.hub.fake_hub import TOKEN, FakeHub, answer, refusal
from train.hub.card import make_card
from train.hub.client import Hub
from train.hub.files import ModelFile, list_files, text_file
from train.hub.push import Pushed, check_names, compare, look, push

REPO = "mesolitica/demo"
Make = Callable[..., Hub]


@pytest.fixture
def files(run: Path) -> list[ModelFile]:
    return [*list_files(run / "export" / "model").files, text_file("README.md", "# kad\n")]


def contents(files: list[ModelFile]) -> dict[str, bytes]:
    return {f.name: f.path.read_bytes() if f.path else f.text or b"" for f in files}


def go(client: Hub, files: list[ModelFile], *, tag: str | None = "v1", overwrite: bool = False, **more: Any) -> Pushed:
    return push(client, REPO, files, tag=tag, message="m", overwrite=overwrite, **({"private": False} | more))


@pytest.mark.parametrize("together", [1000, 1 << 20])
def test_what_arrives_is_the_folder_byte_for_byte(
    hub: FakeHub, client: Make, files: list[ModelFile], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.hub.push._SMALL_BYTES", together)  # one at a time, or many in one call
    done = go(client(), files, private=True)
    assert hub.files(REPO) == contents(files)
    assert len(hub.repos[REPO].commits) == 2  # the one of a new repository, and ours
    assert hub.repos[REPO].tags == {"v1": done.commit}
    assert hub.repos[REPO].private
    assert sorted(done.sent) == sorted(f.name for f in files)


def test_the_same_push_again_changes_and_sends_nothing(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    first = go(client(), files)
    before = len(hub.requests)
    again = go(client(), files)
    assert again == Pushed(first.commit, [], committed=False, tagged=False)
    assert {method for method, _, _ in hub.requests[before:]} == {"GET"}
    go(client(), files, tag="v2")  # another tag of the same files: no commit
    assert hub.repos[REPO].tags == {"v1": first.commit, "v2": first.commit}
    assert len(hub.repos[REPO].commits) == 2


def test_a_published_folder_downloads_as_it_was(
    hub: FakeHub, client: Make, files: list[ModelFile], tmp_path: Path
) -> None:
    from huggingface_hub import HfApi

    go(client(), files)
    place = HfApi(endpoint=hub.url, token=TOKEN).snapshot_download(REPO, revision="v1", cache_dir=tmp_path / "cache")
    assert {name: (Path(place) / name).read_bytes() for name in contents(files)} == contents(files)


def test_a_push_that_was_killed_sends_only_what_is_missing(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    large = [f for f in files if f.size >= hub.lfs_bytes]
    assert len(large) >= 2
    hub.fault("POST .*/commit/", "hang", hook=_interrupt)
    with pytest.raises(KeyboardInterrupt):
        _with_interrupts(lambda: go(client(timeout_s=5.0), files))
    assert sorted(hub.uploads) == sorted(f.sha256 for f in large)
    assert len(hub.repos[REPO].commits) == 1
    go(client(), files)
    assert len(hub.uploads) == len(large)  # none was sent twice
    assert hub.files(REPO) == contents(files)


def _interrupt() -> None:
    """^C, from a thread of the test's own process."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def _with_interrupts(call: Callable[[], object]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        call()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["/refs", "PUT /upload", "/commit/"])
def test_interrupting_a_request_ends_it_at_once(hub: FakeHub, client: Make, files: list[ModelFile], where: str) -> None:
    hub.fault(where, "hang", hook=_interrupt)
    with pytest.raises(KeyboardInterrupt):
        _with_interrupts(lambda: go(client(timeout_s=60.0), files))
    time.sleep(0.1)
    assert hub.hanging == 1, "it did not wait for the answer"


def test_interrupting_a_wait_ends_it_at_once(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    soon = threading.Timer(0.2, _interrupt)
    hub.fault("GET /api/whoami-v2", "status", given=answer(503), hook=soon.start)
    with pytest.raises(KeyboardInterrupt):
        _with_interrupts(lambda: go(client(first_wait_s=800.0, longest_wait_s=800.0), files))
    assert hub.count("whoami") == 1


@pytest.mark.parametrize(
    "where", ["whoami", "/refs", "/create", "/preupload", "batch", "PUT /upload", "/commit", "/tag/"]
)
@pytest.mark.parametrize("kind", ["500", "lost", "cut"])
def test_a_passing_failure_anywhere_is_survived(
    hub: FakeHub, client: Make, files: list[ModelFile], where: str, kind: str
) -> None:
    fault = hub.fault(where, "status" if kind == "500" else kind, given=answer(500) if kind == "500" else None)
    done = go(client(), files)
    assert fault.seen == 1
    assert hub.files(REPO) == contents(files)
    assert len(hub.repos[REPO].commits) == 2, "a commit whose answer was lost is not made twice"
    assert hub.repos[REPO].tags == {"v1": done.commit}


def test_a_hub_that_does_not_answer_is_given_up_after_bounded_tries(
    hub: FakeHub, client: Make, files: list[ModelFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.hub.push._SMALL_BYTES", 1000)
    hub.fault("PUT /upload", "hang", times=-1)
    with pytest.raises(UserError, match=r"sending .* no answer that can be used after 2 tries: ReadTimeout"):
        go(client(attempts=2, timeout_s=0.3), files)
    assert hub.count("PUT /upload") == 2


def test_waiting_as_long_as_the_hub_asks_is_bounded(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    hub.fault("/create", "status", given=refusal(429, "slow down", Retry_After="1"))
    started = time.monotonic()
    go(client(), files)
    assert time.monotonic() - started >= 1
    hub.fault("/refs", "status", given=refusal(429, "slow down", ratelimit='"api";r=0;t=3600'), times=-1)
    with pytest.raises(UserError, match=r"asks to wait 3,600 s \(429\)"):
        go(client(), files, tag="v2")


REFUSALS = [
    ("whoami", refusal(401, "Invalid credentials in Authorization header"), "does not know the token .*make a new one"),
    ("/create", refusal(403, "You don't have the rights to create a model under this namespace"), "lacks the right"),
    ("/commit", refusal(403, "you have no write access"), r"committing to .* lacks the right"),
    ("/refs", refusal(403, "Access to this resource is disabled."), "lacks the right"),
    ("/preupload", refusal(404, "Repository not found", "RepoNotFound"), "not there, or hidden"),
    ("PUT /upload", refusal(400, "bad part"), "the hub refuses .400: bad part"),
    ("/commit", refusal(413, "too large"), "the hub refuses"),
    ("/refs", (200, {"Content-Type": "text/html"}, b"<html>log in to the hotel</html>"), "makes no sense"),
    ("whoami", (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>"), r"fails, also after 3 tries \(502\)"),
]


@pytest.mark.parametrize(("where", "given", "line"), REFUSALS)
def test_a_refusal_is_one_line_and_changes_nothing(
    hub: FakeHub, client: Make, files: list[ModelFile], where: str, given: Any, line: str
) -> None:
    hub.commit(REPO, {"LICENSE": b"kept"}) if "create" not in where else None
    hub.fault(where, "status", given=given, times=-1)
    with pytest.raises(UserError, match=line) as caught:
        go(client(), files)
    assert "\n" not in str(caught.value)
    assert REPO not in hub.repos or hub.files(REPO) == {"LICENSE": b"kept"}


def test_a_token_that_may_only_read_is_named_before_anything_is_sent(
    hub: FakeHub, client: Make, files: list[ModelFile]
) -> None:
    hub.role = "read"
    with pytest.raises(UserError, match="may only read"):
        go(client(), files)
    assert hub.count("POST|PUT|DELETE") == 0
    with pytest.raises(UserError, match="there is no token"):
        go(client(token=None), files)


def test_other_files_on_main_are_never_replaced_without_being_told(
    hub: FakeHub, client: Make, files: list[ModelFile]
) -> None:
    theirs = {"model.safetensors": b"w" * 3000, "LICENSE": b"mine", "model-00001-of-00002.safetensors": b"s" * 3000}
    hub.commit(REPO, theirs)
    with pytest.raises(UserError, match=r"other files of the same names on main: model.safetensors.*--overwrite"):
        go(client(), files)
    assert hub.files(REPO) == theirs
    assert hub.count("POST|PUT|DELETE") == 0
    go(client(), files, overwrite=True)
    assert hub.files(REPO) == contents(files) | {"LICENSE": b"mine"}  # the stale shard goes, the licence stays


def test_a_tag_is_never_moved_without_being_told(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    old = hub.commit(REPO, {"LICENSE": b"old"})
    hub.repos[REPO].tags["v1"] = old
    with pytest.raises(UserError, match="has a tag v1 already, of other files"):
        go(client(), files)
    assert hub.repos[REPO].tags == {"v1": old}
    assert hub.files(REPO) == {"LICENSE": b"old"}
    done = go(client(), files, overwrite=True)
    assert hub.repos[REPO].tags == {"v1": done.commit}


def test_of_two_pushes_at_once_one_fails_cleanly(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    hub.commit(REPO, {"LICENSE": b"x"})
    hub.fault("/commit/", "call", hook=lambda: hub.commit(REPO, {"theirs.txt": b"first"}) and None)
    with pytest.raises(UserError, match=r"somebody else has changed it meanwhile \(412\)"):
        go(client(), files)
    assert hub.files(REPO) == {"LICENSE": b"x", "theirs.txt": b"first"}
    assert hub.repos[REPO].tags == {}
    go(client(), files)
    assert hub.files(REPO) == contents(files) | {"LICENSE": b"x", "theirs.txt": b"first"}


def test_a_tag_that_appears_meanwhile_stays_where_it_is(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    first = hub.commit(REPO, {"LICENSE": b"x"})
    hub.fault("POST .*/tag/", "call", hook=lambda: hub.repos[REPO].tags.update(v1=first))
    with pytest.raises(UserError, match="the tag v1: has appeared meanwhile"):
        go(client(), files)
    assert hub.repos[REPO].tags == {"v1": first}


def test_bytes_that_change_on_the_way_are_noticed(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    hub.fault("PUT /upload", "wrong", times=-1)
    with pytest.raises(UserError, match=r"does not hold what was sent: model.safetensors, tokenizer.json"):
        go(client(), files)
    assert hub.repos[REPO].tags == {}, "what is not whole gets no tag"


def test_a_file_that_the_hub_ignores_is_noticed(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    hub.ignored = {"modules.json"}
    with pytest.raises(UserError, match=r"does not hold what was sent: modules.json. Fix: look for a .gitignore"):
        go(client(), files)
    assert hub.repos[REPO].tags == {}


def test_the_token_is_nowhere_even_if_the_hub_says_it(
    hub: FakeHub, client: Make, files: list[ModelFile], said: list[str], capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    echo = refusal(500, f"who is Bearer {TOKEN}?", X_HF_Warning=f"topic; your token {TOKEN} is old")
    hub.fault("validate-yaml", "status", given=answer(200, {"warnings": [{"message": f"bad {TOKEN}"}], "errors": []}))
    hub.fault("/refs", "status", given=echo, times=2)
    hub.fault("/refs", "status", given=answer(200, TOKEN), times=1)
    trees: list[str] = []
    for _ in range(2):
        try:
            go(client(), files)
        except UserError as error:
            whole: BaseException | None = error
            while whole is not None:
                trees += [repr(whole), str(whole), repr(vars(whole))]
                whole = whole.__cause__ or (None if whole.__suppress_context__ else whole.__context__)
    assert trees
    assert hub.files(REPO)
    out, err = capfd.readouterr()
    written = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    stored = "".join(data.decode(errors="replace") for data in hub.blobs.values())
    for text in (*trees, *said, out, err, caplog.text, written, stored):
        assert TOKEN not in text
        assert TOKEN[3:] not in text
    assert any("<token>" in line for line in said)
    assert all(TOKEN not in path for _, path, _ in hub.requests)
    assert any(who == f"Bearer {TOKEN}" for _, _, who in hub.requests)


def test_without_a_token_a_private_repository_is_not_there(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    go(client(), files, private=True)
    for token, there in ((TOKEN, True), (None, False)):
        asking = client(token=token)
        with asking.open() as api:
            assert look(asking, api, REPO).exists is there


def test_what_was_there_before_decides_by_content(files: list[ModelFile]) -> None:
    plan = compare(files, {})
    assert sorted(plan.add) == sorted(f.name for f in files)
    assert not (plan.replace or plan.same or plan.delete)


def test_a_hub_in_offline_mode_says_so(
    hub: FakeHub, client: Make, files: list[ModelFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"offline mode is on.*unset HF_HUB_OFFLINE"):
        go(client(), files)
    assert hub.requests == []


def test_a_network_that_is_gone_is_one_line(hub: FakeHub, files: list[ModelFile], client: Make) -> None:
    gone = client(attempts=2)
    gone.where = "http://127.0.0.1:9"
    with pytest.raises(UserError, match=r"no answer that can be used after 2 tries: ConnectError"):
        go(gone, files)


@pytest.mark.parametrize(
    "name", ["demo", "a/b/c", "a/", "/b", "a/b--c", "a/..", "a/b.git", "a b/c", "é/x", "a/" + "b" * 99]
)
def test_names_that_the_hub_refuses_are_refused_here(name: str) -> None:
    with pytest.raises(UserError, match="ORG/NAME"):
        check_names(name, None)


@pytest.mark.parametrize("tag", ["main", "", "a b", "-x", "a..b", "x.lock", "v/1", "f" * 40])
def test_tags_that_are_none_are_refused(tag: str) -> None:
    with pytest.raises(UserError, match="--revision"):
        check_names(REPO, tag)
    check_names(REPO, "v1.0")


def test_requests_carry_the_token_in_the_header_alone(hub: FakeHub, client: Make, files: list[ModelFile]) -> None:
    go(client(), files)
    assert all(who in ("", f"Bearer {TOKEN}") for _, _, who in hub.requests)
    assert not [path for _, path, who in hub.requests if re.search("/upload/", path) and who]


@pytest.mark.slow
def test_the_code_of_a_published_card_loads_the_published_model(
    hub: FakeHub, client: Make, tiny_run: Path, tmp_path: Path
) -> None:
    """Both snippets as they stand in the card, in a fresh process with nothing but the hub; against the local folder."""
    import json
    import os
    import subprocess
    import sys

    from sentence_transformers import SentenceTransformer

    model = tiny_run / "export" / "model"
    card = text_file("README.md", make_card(model, tiny_run, name=REPO, licence=None))
    go(client(), [*list_files(model).files, card], tag=None)
    blocks = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)
    assert len(blocks) == 2
    show = "import json; print(json.dumps([queries.tolist(), passages.tolist()]))"
    outside = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(f"{block}\n{show}" for block in blocks)],
        cwd=tmp_path, env=os.environ | outside | {"HF_HUB_DISABLE_XET": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[[")]
    local = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    texts = re.findall(r'encode\(\["(.*?)"\], prompt_name="(\w+)"', blocks[0])
    for place, (told, prompt) in enumerate(texts):
        wanted = local.encode([told], prompt_name=prompt)
        for vectors in shown:
            assert abs(wanted - vectors[place]).max() < 1e-5
    assert len(texts) == len(shown) == 2
    assert hub.count(r"resolve/\w+/model\.safetensors") >= 1
