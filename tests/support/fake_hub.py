"""A hub on this machine that speaks as much of the Hugging Face hub's protocol as a download needs."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/models/(?P<id>[\w.-]+/[\w.-]+)/(?P<verb>revision|tree)/(?P<revision>[^/]+)")
FILE = re.compile(r"/(?P<id>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class FakeHub:
    """Serves folders as models: `models` is hub id -> folder; each has its one commit, COMMIT, which is `main` too."""

    def __init__(self) -> None:
        self.models: dict[str, Path] = {}
        self.gated: set[str] = set()  # that ask for a token
        self.status = 200  # of every answer, where it is another
        self.claimed_bytes = 0  # that each file is said to have on top of its own
        self.cut_at: dict[str, int] = {}  # path -> bytes after which the connection is closed
        self.fetched: list[str] = []  # paths of files, one for each time
        self.agents: list[str] = []  # who asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answers one request."""
        self.agents.append(request.headers.get("User-Agent", ""))
        path = unquote(urlsplit(request.path).path)
        for pattern, answer in ((API, self._describe), (FILE, self._file)):
            match = pattern.fullmatch(path)
            if match is not None:
                return self._checked(request, match, answer)
        return _refuse(request, 404)

    def _checked(
        self,
        request: BaseHTTPRequestHandler,
        match: re.Match[str],
        answer: Callable[[BaseHTTPRequestHandler, re.Match[str]], None],
    ) -> None:
        if self.status != 200:
            return _refuse(request, self.status)
        if match["id"] not in self.models:
            return _refuse(request, 401, "RepoNotFound")  # the hub does not tell strangers what there is
        if match["revision"] not in {"main", COMMIT}:
            return _refuse(request, 404, "RevisionNotFound")
        if match["id"] in self.gated and "Authorization" not in request.headers and "resolve" in request.path:
            return _refuse(request, 401, "GatedRepo")
        return answer(request, match)

    def _describe(self, request: BaseHTTPRequestHandler, match: re.Match[str]) -> None:
        folder = self.models[match["id"]]
        files = [(file, str(file.relative_to(folder))) for file in sorted(folder.rglob("*")) if file.is_file()]
        if match["verb"] == "revision":
            siblings = [{"rfilename": name, "size": file.stat().st_size + self.claimed_bytes} for file, name in files]
            return _send(request, json.dumps({"id": match["id"], "sha": COMMIT, "siblings": siblings}).encode())
        entries = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file.read_bytes())}
            for file, name in files
        ]
        return _send(request, json.dumps(entries).encode())

    def _file(self, request: BaseHTTPRequestHandler, match: re.Match[str]) -> None:
        file = self.models[match["id"]] / match["path"]
        if not file.is_file():
            return _refuse(request, 404, "EntryNotFound")
        if request.command == "GET":
            self.fetched.append(match["path"])
        return _send(request, file.read_bytes(), self.cut_at.get(match["path"]))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _digest(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


def _send(request: BaseHTTPRequestHandler, body: bytes, cut_at: int | None = None) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("ETag", f'"{_digest(body)}"')
    request.send_header("X-Repo-Commit", COMMIT)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body[:cut_at])


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str = "") -> None:
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    request.send_header("X-Error-Message", code)
    request.send_header("Content-Length", "0")
    request.end_headers()
