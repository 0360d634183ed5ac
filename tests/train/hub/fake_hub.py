"""The Hub's API over real HTTP on this machine, as huggingface_hub 2.4 speaks it, with faults on demand.

Files below `lfs_bytes` are kept in git, the others by their SHA-256, as on the real one. State is plain Python: a test
reads it to see what arrived.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]
TOKEN = "hf_" + "TestTokenThatNobodyMayEverSee1234567"


def answer(status: int, value: Any = None, **headers: str) -> Answer:
    """A JSON answer; underscores in header names become hyphens."""
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, json.dumps(value).encode()


def refusal(status: int, message: str, code: str = "", **headers: str) -> Answer:
    """An error in the Hub's form."""
    told = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return status, told | {k.replace("_", "-"): v for k, v in headers.items()}, json.dumps({"error": message}).encode()


@dataclass
class Fault:
    """What goes wrong on requests whose `METHOD path` matches: `times` times (-1: always).

    kind: `status` answers `given`; `hang` says nothing; `cut` closes after a part of the body; `lost` does the work and
    closes without an answer; `wrong` stores other bytes than were sent; `call` does the work as ever. `hook` runs first.
    """

    pattern: str
    kind: str
    times: int = 1
    given: Answer | None = None
    hook: Callable[[], None] | None = None
    seen: int = 0


@dataclass
class Repo:
    """A repository: commits as (id, path → content id), tags, and whether it is private."""

    commits: list[tuple[str, dict[str, str]]]
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False


@dataclass
class FakeHub:
    """The server's state; `requests` are (method, path, Authorization)."""

    token: str = TOKEN
    role: str = "write"
    lfs_bytes: int = 2000
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    hanging: int = 0
    url: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault(self, pattern: str, kind: str, **rest: Any) -> Fault:
        """Arrange that something goes wrong."""
        self.faults.append(Fault(pattern, kind, **rest))
        return self.faults[-1]

    def count(self, pattern: str) -> int:
        """Requests whose `METHOD path` matches."""
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _ in self.requests)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Path → bytes of a revision, without the file that every new repository has."""
        tree = self.tree(self.repos[repo], revision)
        assert tree is not None
        return {path: self.blobs[oid] for path, oid in tree.items() if path != ".gitattributes"}

    def tree(self, repo: Repo, revision: str) -> dict[str, str] | None:
        """Path → content id of a branch, tag or commit."""
        commit = repo.commits[-1][0] if revision == "main" else repo.tags.get(revision, revision)
        return next((files for oid, files in repo.commits if oid == commit), None)

    def commit(self, name: str, change: Mapping[str, bytes | None]) -> str:
        """A commit on main that puts or takes away (None) files."""
        with self.lock:
            repo = self.repos.setdefault(name, Repo([]))
            files = dict(repo.commits[-1][1]) if repo.commits else {}
            for path, data in change.items():
                if data is None:
                    files.pop(path)
                else:
                    files[path] = self.keep(data)
            oid = hashlib.sha1(json.dumps([len(repo.commits), sorted(files.items())]).encode()).hexdigest()
            repo.commits.append((oid, files))
            return oid

    def keep(self, data: bytes) -> str:
        """Store bytes; their SHA-256 is their name."""
        oid = hashlib.sha256(data).hexdigest()
        self.blobs[oid] = data
        return oid

    def entry(self, path: str, oid: str) -> dict[str, Any]:
        """A file in the form of /tree."""
        data = self.blobs[oid]
        if len(data) < self.lfs_bytes:
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            return {"type": "file", "path": path, "size": len(data), "oid": blob}
        oid = hashlib.sha256(data).hexdigest()  # of what is stored, whatever it was announced as
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
        blob = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        lfs = {"oid": oid, "size": len(data), "pointerSize": len(pointer)}
        return {"type": "file", "path": path, "size": len(data), "oid": blob, "lfs": lfs}

    def handle(self, method: str, path: str, who: str, body: bytes) -> Answer:
        """Everything that the API can be asked here."""
        own = f"Bearer {self.token}" == who
        if who and not own:
            return refusal(401, "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            if not own:
                return refusal(401, "Invalid username or password.")
            return answer(200, {"name": "me", "orgs": [], "auth": {"accessToken": {"role": self.role}}})
        if path == "/api/validate-yaml":
            return answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/upload/([0-9a-f]{64})", path):
            return self._store(match[1], body)
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*match.groups())
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(\w+)(?:/(.+))?)?", path)
        repo = self.repos.get(match[1]) if match else None
        if match is None or repo is None or (repo.private and not own):
            return refusal(404 if own else 401, "Repository not found", "RepoNotFound")
        if method != "GET" and (not own or self.role == "read"):
            return refusal(403, "you have no write access to this repository")
        return self._repository(method, match[1], repo, match[2] or "revision", unquote(match[3] or "main"), body)

    def _create(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repos:
            return refusal(409, "You already created this model repo")
        self.commit(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.repos[name].private = asked.get("visibility") == "private" or asked.get("private") is True
        return answer(200, {"url": f"{self.url}/{name}"})

    def _store(self, oid: str, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return refusal(400, "the content does not match its hash")
        self.keep(body)
        self.uploads.append(oid)
        return answer(200)

    def _batch(self, asked: dict[str, Any]) -> Answer:
        objects = []
        for wanted in asked["objects"]:
            actions = {"upload": {"href": f"{self.url}/upload/{wanted['oid']}", "header": {}}}
            there = wanted["oid"] in self.blobs
            objects.append({"oid": wanted["oid"], "size": wanted["size"]} | ({} if there else {"actions": actions}))
        return answer(200, {"transfer": "basic", "objects": objects})

    def _resolve(self, name: str, revision: str, path: str) -> Answer:
        tree = self.tree(self.repos[name], unquote(revision)) if name in self.repos else None
        if tree is None or unquote(path) not in tree:
            return refusal(404, "Entry not found", "EntryNotFound" if tree else "RevisionNotFound")
        oid = tree[unquote(path)]
        commit = next(c for c, files in self.repos[name].commits if files is tree)
        return 200, {"ETag": f'"{oid}"', "X-Repo-Commit": commit}, self.blobs[oid]

    def _repository(self, method: str, name: str, repo: Repo, what: str, rest: str, body: bytes) -> Answer:
        if what == "refs":
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1][0]}]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
            return answer(200, {"branches": branches, "converts": [], "tags": tags})
        if what in ("tree", "revision"):
            revision, _, below = rest.partition("/")
            tree = self.tree(repo, revision)
            if tree is None:
                return refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if what == "tree":
                found = [self.entry(path, oid) for path, oid in tree.items() if path.startswith(below)]
                return answer(200, found) if found else refusal(404, "no such folder", "EntryNotFound")
            commit = next(c for c, files in repo.commits if files is tree)
            siblings = [{"rfilename": path} for path in tree]
            return answer(200, {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": repo.private})
        if what == "preupload":
            return answer(200, {"files": [self._mode(f) for f in json.loads(body)["files"]]})
        if what == "commit":
            return self._commit(name, repo, [json.loads(line) for line in body.splitlines()])
        if what == "tag" and method == "POST":
            tag = json.loads(body)["tag"]
            if tag in repo.tags:
                return refusal(409, f"Tag {tag} already exists")
            repo.tags[tag] = rest
            return answer(200)
        if what == "tag" and method == "DELETE":
            return answer(200) if repo.tags.pop(rest, None) else refusal(404, "no such tag", "RevisionNotFound")
        return refusal(404, "no such route")

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] >= self.lfs_bytes else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] in self.ignored}

    def _commit(self, name: str, repo: Repo, lines: list[dict[str, Any]]) -> Answer:
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.commits[-1][0]:
            return refusal(412, "A commit has happened since. Please refresh and try again.")
        change: dict[str, bytes | None] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                change[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                change[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                change[value["path"]] = None
        oid = self.commit(name, change)
        return answer(200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 1 << 16  # headers and body in one packet: else each answer waits for an acknowledgement

        def log_message(self, *_: Any) -> None:
            pass

        def _body(self, most: int | None = None) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length if most is None else min(most, length))

        def _close(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def _serve(self) -> None:
            path = urlsplit(self.path).path
            line = f"{self.command} {path}"
            with hub.lock:
                hub.requests.append((self.command, self.path, self.headers.get("Authorization", "")))
                fault = next((f for f in hub.faults if f.seen != f.times and re.search(f.pattern, line)), None)
                if fault is not None:
                    fault.seen += 1
            kind = fault.kind if fault is not None else ""
            if kind == "cut":
                self._body(most=100)
                return self._close()
            body = self._body()
            if fault is not None and fault.hook is not None:
                fault.hook()
            if kind == "hang":
                hub.hanging += 1
                hub.stop.wait(20)
                hub.hanging -= 1
                return self._close()
            if kind == "wrong":
                hub.blobs[path.rsplit("/", 1)[-1]] = body[:-1] + b"?"
                return self._send(answer(200))
            if fault is not None and kind == "status":
                assert fault.given is not None
                return self._send(fault.given)
            with hub.lock:
                given = hub.handle(self.command, path, self.headers.get("Authorization", ""), body)
            if kind == "lost":
                return self._close()
            return self._send(given)

        def _send(self, given: Answer) -> None:
            status, headers, data = given
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Type" not in headers:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    return Handler


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
