"""A folder's files into a repository of the Hub: compare first, send what is missing, one commit, then the tag.

Invariants: nothing that is on the hub is replaced, removed or moved without `overwrite`; the commit names the parent
that was compared with, so that of two pushes at once one fails; a push that was killed anywhere is finished by the same
call, which sends only what the hub does not have.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from train.hub.client import Answered, Hub
from train.hub.files import ModelFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SMALL_BYTES = 1 << 20
_STORED = (".safetensors", ".onnx", ".onnx_data", ".model")
"""Kinds that a repository keeps outside git whatever their size."""
_STALE = re.compile(r"(.*/)?(model|pytorch_model)[^/]*\.(safetensors|bin)(\.index\.json)?|onnx/.*\.(onnx|onnx_data)")
"""Files that a loader would find beside new weights, or in their place."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub: bytes, SHA-256 where it is stored apart from git, and its blob id."""

    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True)
class Remote:
    """A repository as it is: whether it can be seen, the commit of main, its tags and the files of main."""

    exists: bool
    head: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, RemoteFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a push would change in one tree: names of files to add, replace, leave as they are, and take away."""

    add: list[str]
    replace: list[str]
    same: list[str]
    delete: list[str]

    @property
    def nothing(self) -> bool:
        """Whether the tree is already as wanted."""
        return not (self.add or self.replace or self.delete)


@dataclass(frozen=True)
class Pushed:
    """What a push did: the commit, names that were sent, and whether anything was changed at all."""

    commit: str
    sent: list[str]
    committed: bool
    tagged: bool


def check_names(repo: str, tag: str | None) -> None:
    """Raises `UserError` where the hub would refuse the name of the repository or of the tag."""
    reason = "" if repo.count("/") == 1 else "must be ORG/NAME, with one slash"
    part = r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
    if not reason and (not re.fullmatch(f"{part}/{part}", repo, re.ASCII) or len(repo) > 96 or repo.endswith(".git")):
        reason = "must be letters, digits, - _ . in each part, at most 96, without -- or .., no .git at its end"
    if reason:
        raise UserError(f"ORG/NAME = {repo!r}", reason, "write it as in mesolitica/embedding-malay")
    bad = tag is not None and (
        not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", tag, re.ASCII)
        or ".." in tag
        or tag.endswith((".", ".lock"))
        or tag in ("main", "HEAD")
        or re.fullmatch(r"[0-9a-f]{40}", tag)
    )
    if bad:
        raise UserError(
            f"--revision {tag!r}", "is no name for a tag (or that of a branch or commit)", "use one as v1.0"
        )


def tree(hub: Hub, api: HfApi, repo: str, revision: str) -> dict[str, RemoteFile]:
    """All files of a revision."""
    from huggingface_hub.hf_api import RepoFile

    def read() -> dict[str, RemoteFile]:
        found = {}
        for entry in api.list_repo_tree(repo, recursive=True, revision=revision):
            if isinstance(entry, RepoFile):
                stored = entry.lfs
                found[entry.path] = RemoteFile(entry.size, stored.sha256 if stored else None, entry.blob_id)
        return found

    return hub.ask(f"reading the files of {repo}", read)


def look(hub: Hub, api: HfApi, repo: str) -> Remote:
    """The repository as it is now; one that this token cannot see does not exist."""

    def unseen(answer: Answered) -> bool:
        return answer.status == 404 or (answer.status == 401 and not hub.known)

    try:
        refs = hub.ask(f"reading {repo}", lambda: api.list_repo_refs(repo), expected=unseen)
    except Answered:
        return Remote(False)
    head = next((branch.target_commit for branch in refs.branches if branch.name == "main"), None)
    tags = {tag.name: tag.target_commit for tag in refs.tags}
    return Remote(True, head, tags, tree(hub, api, repo, head) if head else {})


def compare(files: Sequence[ModelFile], there: Mapping[str, RemoteFile]) -> Plan:
    """What would change if `files` were put into a tree. Digests decide, names and sizes alone never do."""

    def equal(file: ModelFile, other: RemoteFile) -> bool:
        return file.sha256 == other.sha256 if other.sha256 else file.blob_id == other.blob_id

    ours = {file.name for file in files}
    return Plan(
        add=[f.name for f in files if f.name not in there],
        replace=[f.name for f in files if f.name in there and not equal(f, there[f.name])],
        same=[f.name for f in files if f.name in there and equal(f, there[f.name])],
        delete=sorted(name for name in there if name not in ours and _STALE.fullmatch(name)),
    )


def objections(plan: Plan, *, repo: str, tag: str | None, tag_plan: Plan | None) -> list[str]:
    """What needs `--overwrite`, a line each."""
    lines = []
    if tag_plan is not None and not tag_plan.nothing:
        lines.append(f"{repo} has a tag {tag} already, of other files")
    if plan.replace or plan.delete:
        names = [*plan.replace, *(f"{name} (would be taken away)" for name in plan.delete)]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append(f"{repo} holds other files of the same names on main: {', '.join(names[:4])}{more}")
    return lines


def tag_plan(
    hub: Hub, api: HfApi, repo: str, remote: Remote, files: Sequence[ModelFile], tag: str | None
) -> Plan | None:
    """How the tag's tree differs from `files`; None where there is no such tag."""
    if tag is None or tag not in remote.tags:
        return None
    return compare(files, remote.files if remote.tags[tag] == remote.head else tree(hub, api, repo, remote.tags[tag]))


def push(
    hub: Hub,
    repo: str,
    files: Sequence[ModelFile],
    *,
    tag: str | None,
    message: str,
    private: bool,
    overwrite: bool,
) -> Pushed:
    """Bring main of a repository to hold `files`, in one commit, and put the tag on it.

    Raises:
        UserError: whatever keeps it from being done; main is then as it was, unless the message says otherwise.
    """
    if not hub.known:
        raise UserError(f"pushing to {repo}", "there is no token", "hf auth login, or set HF_TOKEN (with write)")
    with hub.open() as api:
        _may_write(hub, api, repo)
        remote = look(hub, api, repo)
        if not remote.exists:
            _create(hub, api, repo, private=private)
            remote = look(hub, api, repo)
        plan, tagged = compare(files, remote.files), tag_plan(hub, api, repo, remote, files, tag)
        if tagged is not None and tagged.nothing:
            assert tag is not None
            return Pushed(remote.tags[tag], [], committed=False, tagged=False)
        lines = objections(plan, repo=repo, tag=tag, tag_plan=tagged)
        if lines and not overwrite:
            raise UserError(lines[0], "is never overwritten without being told", "give another name, or --overwrite")
        commit, sent = remote.head or "", []
        if not plan.nothing:
            sent = [*plan.add, *plan.replace]
            commit = _commit(hub, api, repo, [f for f in files if f.name in set(sent)], plan, remote, message, files)
        if tag is not None:
            _tag(hub, api, repo, tag, commit, move=tagged is not None)
        return Pushed(commit, sent, committed=not plan.nothing, tagged=tag is not None)


def _may_write(hub: Hub, api: HfApi, repo: str) -> None:
    """Refuse a token that may only read before anything is hashed or sent."""
    told: Any = hub.ask("asking whose the token is", api.whoami)
    token = (told.get("auth") or {}).get("accessToken") or {} if isinstance(told, dict) else {}
    if token.get("role") == "read":
        raise UserError(
            f"pushing to {repo}", "the token may only read", "make one that may write at hf.co/settings/tokens"
        )


def _create(hub: Hub, api: HfApi, repo: str, *, private: bool) -> None:
    """Make the repository. One that has appeared meanwhile is as good."""
    try:
        hub.ask(
            f"creating {repo}",
            lambda: api.create_repo(repo, private=True if private else None),  # else as the organisation has it
            expected=lambda answer: answer.status == 409 and not answer.passing,
        )
    except Answered:
        return


def _commit(
    hub: Hub,
    api: HfApi,
    repo: str,
    sending: list[ModelFile],
    plan: Plan,
    remote: Remote,
    message: str,
    files: Sequence[ModelFile],
) -> str:
    """Send what is missing, commit, and read back what the hub then holds. Returns the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = []
    for file in sending:
        content = str(file.path) if file.path is not None else file.text or b""
        operation = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=content)
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)  # known: the library need not read the file again
        additions.append(operation)
    small, large = [], []
    for addition, file in zip(additions, sending, strict=True):
        if file.size < _SMALL_BYTES and not file.name.endswith(_STORED):
            small.append(addition)
        else:
            large.append((addition, file))
    # one such file a call: a failure costs one file, and ^C need not wait for the library's threads
    groups = [([a], f"sending {file.name} ({file.size / 1e6:,.1f} MB)") for a, file in large]
    groups += [(small, f"sending {len(small)} small files")] if small else []
    for group, what in groups:
        hub.note(what)
        hub.ask(what, lambda group=group: api.preupload_lfs_files(repo, additions=group))  # type: ignore[misc]
    operations: list[Any] = [*additions, *(CommitOperationDelete(name) for name in plan.delete)]
    tries = 0

    def commit() -> str:
        nonlocal tries
        tries += 1
        if tries > 1 and (done := _done_by(hub, api, repo, remote, files)):
            return done
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            oid = api.create_commit(
                repo, operations=operations, commit_message=message, parent_commit=remote.head, num_threads=1
            ).oid
        for warning in told:
            hub.note(hub.clean(warning.message))
        return oid

    try:
        made = hub.ask(f"committing to {repo}", commit, expected=lambda answer: answer.status in (409, 412))
    except Answered as conflict:
        if not (done := _done_by(hub, api, repo, remote, files)):
            raise UserError(
                f"committing to {repo}",
                f"somebody else has changed it meanwhile ({conflict.status})",
                "look at what they did, then run the same command; what was sent need not be sent again",
            ) from None
        made = done
    if not re.fullmatch(r"[0-9a-f]{40}", made):
        raise UserError(
            f"committing to {repo}", "the hub did not name a commit", "look at the repository, and try again"
        )
    left = compare(files, tree(hub, api, repo, made))
    if not left.nothing:
        names = ", ".join([*left.add, *left.replace, *left.delete][:4])
        raise UserError(
            f"{repo} at {made[:12]}", f"does not hold what was sent: {names}", "look for a .gitignore there; then again"
        )
    return made


def _done_by(hub: Hub, api: HfApi, repo: str, before: Remote, files: Sequence[ModelFile]) -> str | None:
    """The commit of main, if it has moved and holds what was wanted: a commit whose answer was lost has happened."""
    now = look(hub, api, repo)
    moved = now.head is not None and now.head != before.head
    return now.head if moved and compare(files, now.files).nothing else None


def _tag(hub: Hub, api: HfApi, repo: str, tag: str, commit: str, *, move: bool) -> None:
    """Put the tag on the commit. One that appeared meanwhile is left where it is."""
    if move:
        with suppress(Answered):  # gone already: an earlier try had its answer lost
            hub.ask(
                f"taking the tag {tag} off",
                lambda: api.delete_tag(repo, tag=tag),
                expected=lambda answer: answer.status == 404,
            )
    try:
        hub.ask(
            f"tagging {commit[:12]} as {tag}",
            lambda: api.create_tag(repo, tag=tag, revision=commit),
            expected=lambda answer: answer.status == 409,
        )
    except Answered:
        if look(hub, api, repo).tags.get(tag) != commit:
            raise UserError(
                f"{repo}: the tag {tag}",
                f"has appeared meanwhile on another commit; the files are there as {commit[:12]}, untagged",
                "give another --revision",
            ) from None
