"""A small hub on the loopback: repositories of commits, and the part of the hub's protocol that its client uses."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class Hub:
    """Repositories by ("dataset" or "model", id): a list of commits, each a mapping from paths to bytes."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.large = 5_000_000  # bytes from which a file is uploaded by itself, before the commit that names it
        self.uploaded: dict[str, bytes] = {}
        self.address = ""

    @staticmethod
    def name_of(commit: dict[str, bytes], number: int) -> str:
        return hashlib.sha1(repr((number, sorted(commit.items()))).encode()).hexdigest()

    def files(self, kind: str, repo: str) -> dict[str, bytes]:
        return self.repositories[kind, repo][-1]

    def commit(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories[kind, repo]
        named = {self.name_of(commit, number): commit for number, commit in enumerate(commits)}
        name = list(named)[-1] if revision == "main" else revision
        return (name, named[name]) if name in named else None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if matched := re.fullmatch(r"/api/(dataset|model)s/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?", path):
            kind, repo, what, revision = matched.groups()
            if (commit := self.there(kind, repo, revision or "main")) is not None:
                name, files = commit
                entries = [
                    {"type": "file", "path": p, "oid": _oid(data), "size": len(data)} for p, data in files.items()
                ]
                self.answer(entries if what == "tree" else {"id": repo, "sha": name, "siblings": []})
        elif matched := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            prefix, repo, revision, file = matched.groups()
            if (commit := self.there("dataset" if prefix else "model", repo, revision)) is not None:
                name, files = commit
                if file in files:
                    self.answer(files[file], X_Repo_Commit=name, ETag=f'"{_oid(files[file])}"')
                else:
                    self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            self.answer({"error": f"The tests' hub has no {path}"}, 500)

    do_HEAD = do_GET

    def there(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if (kind, repo) not in self.hub.repositories or (self.hub.private[repo] and not self.may()):
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        if (commit := self.hub.commit(kind, repo, revision)) is None:
            self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        return commit

    def may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif not self.may():
            self.answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            about = json.loads(body)
            kind, repo = about.get("type") or "model", f"{about['organization']}/{about['name']}"
            url = f"{self.hub.address}/{'datasets/' if kind == 'dataset' else ''}{repo}"
            if (kind, repo) in self.hub.repositories:
                self.answer({"error": "You already created this repo", "url": url}, 409)
            else:
                self.hub.repositories[kind, repo] = [{}]
                self.hub.private[repo] = about.get("visibility") == "private" or bool(about.get("private"))
                self.answer({"url": url})
        elif matched := re.fullmatch(r"/api/(dataset|model)s/([\w.-]+/[\w.-]+)/(preupload|commit)/main", path):
            kind, repo, what = matched.groups()
            if (commit := self.there(kind, repo, "main")) is None:
                return
            if what == "preupload":
                sizes = {file["path"]: file["size"] for file in json.loads(body)["files"]}
                known = {file: _oid(commit[1][file]) for file in sizes if file in commit[1]}
                modes = [
                    {
                        "path": path,
                        "uploadMode": "lfs" if size >= self.hub.large else "regular",
                        "shouldIgnore": False,
                        "oid": known.get(path),
                    }
                    for path, size in sizes.items()
                ]
                self.answer({"files": modes})
            else:
                self.answer(self.committed(kind, repo, dict(commit[1]), body))
        elif re.fullmatch(r"/(datasets/)?[\w.-]+/[\w.-]+\.git/info/lfs/objects/batch", path):
            objects = [
                {**file, "actions": {"upload": {"href": f"{self.hub.address}/large/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.answer({"error": f"The tests' hub has no {path}"}, 500)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.uploaded[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def committed(self, kind: str, repo: str, files: dict[str, bytes], body: bytes) -> dict[str, object]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.hub.uploaded[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        commits = self.hub.repositories[kind, repo]
        commits.append(files)
        name = self.hub.name_of(files, len(commits) - 1)
        prefix = "datasets/" if kind == "dataset" else ""
        return {"success": True, "commitOid": name, "commitUrl": f"{self.hub.address}/{prefix}{repo}/commit/{name}"}


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub inside the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
