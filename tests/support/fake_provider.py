"""A provider on this machine: a real HTTP server that speaks Cohere's and OpenAI's API, and fails as it is told."""

import contextlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.support.fake_provider_script import Ending, Gate, Request, Scripted
from tests.support.fake_provider_wire import CohereWire, OpenAIWire, Refused, Wire, tokens_of, vectors_of

COHERE = {
    "embed-multilingual-v3.0": 1024,
    "embed-multilingual-light-v3.0": 384,
    "embed-english-light-v3.0": 384,
    "embed-v4.0": 1536,
}
OPENAI = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
OTHERS = {"all-MiniLM-L6-v2": 384, "nvidia/nv-embedqa-e5-v5": 1024}
WIRES: tuple[Wire, ...] = (CohereWire(), OpenAIWire())
RESET_AT_ONCE = struct.pack("ii", 1, 0)  # of SO_LINGER: close sends RST


class FakeProvider:
    """Serves the models `widths` (name -> width) to who has `key`; without a key to everybody.

    `script` is what the next requests meet, one each; `requests` is what came, `most_in_flight` at a time.
    """

    def __init__(
        self,
        *,
        key: str = "",
        widths: Mapping[str, int] = COHERE | OPENAI | OTHERS,
        tls: ssl.SSLContext | None = None,
        now_s: Callable[[], float] = time.monotonic,
        floats_only: bool = False,
        refuses_base64: str | None = None,
        needs_input_type: bool = False,
    ) -> None:
        """`refuses_base64` is what it says to a request for base64; `needs_input_type` is NVIDIA's NIM."""
        self.key, self.widths, self.floats_only = key, widths, floats_only
        self.refuses_base64, self.needs_input_type = refuses_base64, needs_input_type
        self.script: deque[Scripted] = deque()
        self.always: Scripted | None = None  # what each request meets that the script has nothing for
        self.requests: list[Request] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._now_s = now_s
        self._gates: list[Gate] = []
        self._changed = threading.Condition()
        self._server = _Server(self, tls)
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    @property
    def texts(self) -> list[str]:
        """All texts that came, in order of arrival."""
        return [text for request in self.requests for text in request.texts]

    def gate(self) -> Gate:
        """Returns a gate that is opened at the end, whatever becomes of the test."""
        self._gates.append(Gate())
        return self._gates[-1]

    def wait_for(self, requests: int) -> Request:
        """Returns the last of so many requests, once they have arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= requests, timeout=60)
        return self.requests[requests - 1]

    def arrived(self, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> tuple[Request, Scripted]:
        """Returns the record of a request, and what it meets."""
        request = Request(path, {name.lower(): value for name, value in headers.items()}, body, self._now_s())
        with self._changed:
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            scripted = self.script.popleft() if self.script else self.always or Scripted()
            self._changed.notify_all()
        return request, scripted

    def answered(self) -> None:
        """Takes note that a request is no longer in flight."""
        with self._changed:
            self._in_flight -= 1

    def answer(self, request: Request, scripted: Scripted) -> tuple[int, bytes]:
        """Returns the status and body that a request deserves, or those of the script."""
        wire = next((wire for wire in WIRES if request.path.endswith(wire.path)), WIRES[1])
        if scripted.body is not None:
            return scripted.status, scripted.body
        try:
            status, answer = scripted.status, self._embedded(wire, request, scripted)
        except Refused as refused:
            status, answer = refused.status, wire.error(refused)
        return status, json.dumps(answer).encode()

    def _embedded(self, wire: Wire, request: Request, scripted: Scripted) -> dict[str, Any]:
        if scripted.status != 200:
            raise Refused(scripted.status, wire.messages.get(scripted.status, "invalid request"))
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and given != self.key:
            raise wire.bad_key(given)
        if not request.path.endswith(wire.path):
            raise Refused(404, "unknown path")
        if self.refuses_base64 is not None and "base64" in (
            request.body.get("encoding_format"),
            *request.body.get("embedding_types", ()),
        ):
            raise Refused(400, self.refuses_base64)
        body = request.body | ({"encoding_format": "float"} if self.floats_only else {})
        if self.floats_only and "embedding_types" in body:
            body = body | {"embedding_types": ["float"]}
        if self.needs_input_type:
            body = {name: value for name, value in body.items() if name not in {"input_type", "truncate"}}
            if request.body.get("input_type") not in {"query", "passage"}:
                raise Refused(400, "'input_type' parameter is required for the model; it is query or passage")
            if request.body.get("truncate", "NONE") not in {"NONE", "START", "END"}:
                raise Refused(422, "truncate is not valid")
        asked = wire.read(body, self.widths)
        if self.needs_input_type:
            asked = replace(asked, kind=request.body["input_type"])
        rows = scripted.change(vectors_of(asked.model, asked.kind, asked.texts, asked.width))
        tokens = sum(min(tokens_of(text), wire.max_tokens) for text in asked.texts)
        return scripted.edit(wire.write(asked, rows, scripted.order(len(rows)), tokens))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for gate in self._gates:
            gate.open()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()  # waits for the threads
        for gate in self._gates:
            gate.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, provider: FakeProvider, tls: ssl.SSLContext | None) -> None:
        self._open: set[socket.socket] = set()
        self._tls = tls
        self.provider = provider
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:  # shaking hands with the first read, on the connection's own thread
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._open.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        self._open.discard(request)
        super().close_request(request)

    def hang_up(self) -> None:
        """Ends every connection, so that no thread waits for another request on it."""
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):  # the other end was first
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that hang up; anything else is told as ever."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        provider = self.server.provider
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request, scripted = provider.arrived(self.path, self.headers, body)
        try:
            if scripted.gate is not None and not scripted.gate.wait(self.connection):
                request.cut.set()
                self.close_connection = True
                return
            status, answer = provider.answer(request, scripted)
        finally:
            provider.answered()
        self._send(status, answer, scripted)

    def _send(self, status: int, body: bytes, scripted: Scripted) -> None:
        if scripted.ending is Ending.SILENT:
            self.close_connection = True
            return
        self.send_response_only(status)
        usual = {"Content-Type": "application/json", "Date": self.date_time_string(), "X-Request-Id": "of-the-provider"}
        for name, value in (usual | dict(scripted.headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if scripted.ending is Ending.WHOLE:
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)
        self.close_connection = True
        os.close(self.connection.detach())  # at once: the server would say goodbye first

    def log_message(self, *_: object) -> None:
        """Says nothing."""
