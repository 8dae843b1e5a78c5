"""Fake provider with a fixed latency: Cohere's POST /v2/embed over HTTP/1.1, which responds after LATENCY_S.

    python -m benchmarks.drivers.fake_provider PORT_FILE LATENCY_S

The vectors are encoded at startup, so that the latency includes almost no processor time of this process. GET /figures
returns the number of calls and texts since the last GET, and the maximum number of concurrent calls.
"""

import asyncio
import base64
import json
import socket
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

DIMENSIONS = 1024
ROWS = 997  # distinct vectors; a checksum of the text selects one


@dataclass(slots=True)
class Figures:
    """Requests since the last GET /figures."""

    calls: int = 0
    texts: int = 0
    most_in_flight: int = 0


class Provider:
    """Responds to requests and counts them."""

    def __init__(self, latency_s: float) -> None:
        rows = np.random.default_rng(0).standard_normal((ROWS, DIMENSIONS)).astype("<f4")
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self._vectors = {
            "base64": [json.dumps(base64.b64encode(row.tobytes()).decode()) for row in rows],
            "float": [json.dumps(row.tolist()) for row in rows],
        }
        self._latency_s = latency_s
        self._in_flight = 0
        self._figures = Figures()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until the peer closes it."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                response = await self._respond(head, body)
                header = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(response)}\r\n\r\n"
                writer.write(header.encode() + response)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _respond(self, head: str, body: bytes) -> bytes:
        if head.startswith("GET"):
            figures, self._figures = self._figures, Figures()
            return json.dumps(asdict(figures)).encode()
        request = json.loads(body)
        self._figures.calls += 1
        self._figures.texts += len(request["texts"])
        self._in_flight += 1
        self._figures.most_in_flight = max(self._figures.most_in_flight, self._in_flight)
        latency = asyncio.create_task(asyncio.sleep(self._latency_s))  # runs while the response is encoded
        response = self._encode(request)
        await latency
        self._in_flight -= 1
        return response

    def _encode(self, request: dict[str, Any]) -> bytes:
        (kind,) = request["embedding_types"]
        vectors = ",".join(self._vectors[kind][zlib.crc32(text.encode()) % ROWS] for text in request["texts"])
        texts = json.dumps(request["texts"])
        meta = json.dumps({"api_version": {"version": "2"}, "billed_units": {"input_tokens": len(request["texts"])}})
        response = (
            f'{{"id": "0", "response_type": "embeddings_by_type", "texts": {texts}, "meta": {meta}, '
            f'"embeddings": {{"{kind}": [{vectors}]}}}}'
        )
        return response.encode()


async def serve(provider: Provider, listener: socket.socket) -> None:
    """Serves until the process is terminated."""
    async with await asyncio.start_server(provider.handle, sock=listener) as server:
        await server.serve_forever()


def main(port_file: Path, latency_s: float) -> None:
    """Binds a free port, writes it to `port_file`, and serves; connections queue until the loop runs."""
    provider, listener = Provider(latency_s), socket.create_server(("127.0.0.1", 0))
    partial = port_file.with_suffix(".part")
    partial.write_text(str(listener.getsockname()[1]), encoding="ascii")
    partial.replace(port_file)
    uvloop.run(serve(provider, listener))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
