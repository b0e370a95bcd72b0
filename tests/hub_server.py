"""A hub on loopback: speaks as much of the Hugging Face hub's protocol as a download or an upload meets.

Large files are handed over by redirect to a second address, as the hub does, which must never see a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_FROM = 1000  # bytes; larger files are stored as the hub stores weights


@dataclass
class Repo:
    """One model repository: the files of each revision's newest commit, and who may do what."""

    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    private: bool = False
    gated: bool = False
    members: set[str] = field(default_factory=set)  # who has been let in (gated) or may look (private)
    writers: set[str] = field(default_factory=set)
    log: list[dict[str, Any]] = field(default_factory=list)

    def commit_of(self, branch: str) -> str:
        names = json.dumps(
            [(n, hashlib.sha1(c).hexdigest()) for n, c in sorted(self.branches[branch].items())]
        )
        return hashlib.sha1(f"{branch}{names}".encode()).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        for branch, files in self.branches.items():
            if revision in (branch, self.commit_of(branch)):
                return files
        return None

    def revision(self, name: str) -> str | None:
        for branch in self.branches:
            if name in (branch, self.commit_of(branch)):
                return self.commit_of(branch)
        return None


@dataclass
class Fault:
    """What goes wrong with requests whose path holds `match`, `times` times.

    Args:
        kind: "status", "cut" (the connection closes after `after` bytes), "corrupt" (a byte differs), "html",
            "drop" (no answer at all), "hold" (after `after` bytes nothing more comes until `release` is set),
            "no_range" (ranges are ignored).
    """

    match: str
    kind: str
    times: int = 1
    method: str | None = None
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    after: int = 0
    release: threading.Event = field(default_factory=threading.Event)


class HubServer:
    """The hub, its storage host, and what they were asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, tuple[str, str]] = {}  # token: (name, role)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.storage_requests: list[tuple[str, str, dict[str, str]]] = []
        self.blobs: dict[str, bytes] = {}
        self.xet_folder = ""  # where Xet keeps what it is sent; empty: this hub takes LFS alone
        self.xet_hashes: dict[str, str] = {}  # SHA-256 of a file: Xet's name for it
        self.lock = threading.Lock()
        self._servers = []
        for storage in (False, True):
            handler = type("Handler", (_Handler,), {"hub": self, "storage": storage})
            server = _Server(("127.0.0.1", 0), handler)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self._servers.append(server)
        self.url = f"http://127.0.0.1:{self._servers[0].server_address[1]}"
        self.storage_url = f"http://localhost:{self._servers[1].server_address[1]}"

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        repo = self.repos[name] = Repo({"main": dict(files)}, **options)
        return repo

    def fail(self, match: str, kind: str, **options: Any) -> Fault:
        fault = Fault(match, kind, **options)
        self.faults.append(fault)
        return fault

    def count(self, method: str, part: str) -> int:
        seen = self.requests + self.storage_requests
        return sum(1 for verb, path, _ in seen if verb == method and part in path)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    storage: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    # -- plumbing

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._read_body()
        headers = {key.lower(): value for key, value in self.headers.items()}
        with self.hub.lock:
            seen = self.hub.storage_requests if self.storage else self.hub.requests
            seen.append((self.command, path, headers))
        self.fault = self._next_fault(path)
        if self.fault and self.fault.kind == "status":
            return self._send(
                self.fault.status,
                self.fault.body.encode(),
                {"Content-Type": "application/json", **self.fault.headers},
            )
        if self.fault and self.fault.kind == "html":
            return self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        if self.fault and self.fault.kind == "drop":
            self.close_connection = True
            return None
        if self.storage:
            return self._storage(path, body)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            return self._error(401, "", "Invalid credentials in Authorization header")
        self.user, self.role = self.hub.users.get(token, (None, None))
        return self._route(path, body)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _next_fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and fault.match in path and fault.method in (None, self.command):
                    fault.times -= 1
                    return fault
        return None

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        if code:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    # -- the hub

    def _route(self, path: str, body: bytes) -> None:
        if path == "/api/whoami-v2":
            if self.user is None:
                return self._error(401, "", "Invalid username or password.")
            auth = {"accessToken": {"displayName": "test", "role": self.role}}
            return self._json({"name": self.user, "type": "user", "orgs": [{"name": "org"}], "auth": auth})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*match.groups())
        what = "revision|tree|refs|preupload|commit|branch|xet-write-token|xet-read-token"
        if match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)(?:/({what})(?:/(.+))?)?", path):
            return self._model(match[1], match[2], match[3], body)
        return self._error(404, "", f"no such page {path}")

    def _repo(self, name: str) -> Repo | None:
        found = next(
            (repo for key, repo in self.hub.repos.items() if key.casefold() == name.casefold()), None
        )
        if found is None or (found.private and self.user not in found.members | found.writers):
            self._error(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
            return None
        return found

    def _model(self, name: str, what: str | None, rest: str | None, body: bytes) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        if what == "refs":
            branches = [
                {"name": b, "ref": f"refs/heads/{b}", "targetCommit": "0" * 40} for b in repo.branches
            ]
            return self._json({"branches": branches, "tags": [], "converts": []})
        if what == "xet-read-token":
            return self._xet_token()
        if what in ("preupload", "commit", "branch", "xet-write-token"):
            return self._write(name, repo, what, rest or "", body)
        revision = rest or "main"
        files = repo.files(revision)
        if files is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what == "tree":
            return self._json([_tree_entry(file, content) for file, content in files.items()])
        return self._json(
            {
                "id": name,
                "sha": repo.revision(revision),
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "siblings": [{"rfilename": file} for file in files],
            }
        )

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        files = repo.files(revision)
        if files is None:
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        if file not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        if repo.gated and self.user not in repo.members:
            return self._error(401 if self.user is None else 403, "GatedRepo", "Your request awaits a review")
        content = files[file]
        common = {"X-Repo-Commit": repo.revision(revision) or "", "Accept-Ranges": "bytes"}
        if len(content) < LFS_FROM:
            return self._content(content, {**common, "ETag": f'"{git_digest(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        self.hub.blobs[digest] = content
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
        if digest in self.hub.xet_hashes:
            route = f"{self.hub.url}/api/models/{name}/xet-read-token/{repo.revision(revision)}"
            linked |= {"X-Xet-Hash": self.hub.xet_hashes[digest], "X-Xet-Refresh-Route": route}
        location = f"{self.hub.storage_url}/blob/{digest}/{file}?signature=secret"
        return self._send(302, b"", {**common, **linked, "Location": location})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        fault = self.fault
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not (fault and fault.kind == "no_range"):
            start, status = int(asked[1]), 206
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        served = content[start:]
        if fault and fault.kind == "corrupt" and served:
            served = bytes([served[0] ^ 1]) + served[1:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(served))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind in ("cut", "hold"):
            self.wfile.write(served[: fault.after])
            self.wfile.flush()
            if fault.kind == "cut":
                self.close_connection = True
                return
            fault.release.wait()
            served = served[fault.after :]
        self.wfile.write(served)

    # -- the storage host

    def _storage(self, path: str, body: bytes) -> None:
        _, kind, digest, *_ = path.split("/")
        if kind == "blob" and digest in self.hub.blobs:
            return self._content(self.hub.blobs[digest], {"ETag": f'"{digest}"'})
        if kind == "lfs" and self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != digest:
                return self._send(400)
            self.hub.blobs[digest] = body
            return self._send(200)
        return self._send(404)

    # -- writing

    def _create(self, wanted: dict[str, Any]) -> None:
        if self.user is None:
            return self._error(401, "", "Invalid username or password.")
        owner = wanted.get("organization") or self.user
        if self.role == "read" or owner not in (self.user, "org"):
            return self._error(
                403, "", f"You don't have the rights to create a model under the namespace {owner}"
            )
        name = f"{owner}/{wanted['name']}"
        if name in self.hub.repos:
            return self._json(
                {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409
            )
        repo = self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, writers={self.user})
        repo.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return self._json({"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def _write(self, name: str, repo: Repo, what: str, rest: str, body: bytes) -> None:
        if self.user is None:
            return self._error(401, "", "Invalid username or password.")
        if self.user not in repo.writers or self.role == "read":
            return self._error(403, "", "You do not have permission to write to this repository")
        if what == "xet-write-token" and not self.hub.xet_folder:
            return self._error(404, "", "Xet is not enabled here")
        if what == "xet-write-token":
            return self._xet_token()
        if what == "branch":
            repo.branches[rest] = dict(repo.branches["main"])
            return self._json({})
        if rest not in repo.branches:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {rest}")
        if what == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files, "commitOid": repo.commit_of(rest)})
        return self._commit(
            name, repo, rest, [json.loads(line) for line in body.splitlines() if line.strip()]
        )

    def _xet_token(self) -> None:
        place, until = f"local://{self.hub.xet_folder}", int(time.time()) + 3600
        headers = {
            "Content-Type": "application/json",
            "X-Xet-Cas-Url": place,
            "X-Xet-Access-Token": "t",
            "X-Xet-Token-Expiration": str(until),
        }
        return self._send(
            200, json.dumps({"casUrl": place, "accessToken": "t", "exp": until}).encode(), headers
        )

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.storage_url}/lfs/{item['oid']}"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> None:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.commit_of(branch)):
            return self._error(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.branches[branch])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return self._error(400, "", f"lfs object {value['oid']} is missing")
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        repo.branches[branch] = files
        repo.log.append(header)
        commit = repo.commit_of(branch)
        return self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"}
        )


def _tree_entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_digest(content)}
    if len(content) >= LFS_FROM:
        entry["lfs"] = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
    return entry


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
