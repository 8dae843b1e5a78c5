"""A provider that takes a fixed time: Cohere's POST /v2/embed over HTTP/1.1, answered after LATENCY_S by a timer.

    python -m benchmarks.drivers.fake_provider PORT_FILE LATENCY_S

Vectors are ready before anything is asked, so that next to nothing of an answer's time is this process's own work. GET
/figures tells what came since it was last asked: calls, texts, and the most calls at a time.
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
ROWS = 997  # different vectors, one of which a text's bytes choose


@dataclass(slots=True)
class Figures:
    """What came."""

    calls: int = 0
    texts: int = 0
    most_in_flight: int = 0


class Provider:
    """Answers requests, and counts them."""

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

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one connection's requests until the other end closes it."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                answer = await self._answer(head, body)
                about = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"
                writer.write(about.encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, head: str, body: bytes) -> bytes:
        if head.startswith("GET"):
            told, self._figures = self._figures, Figures()
            return json.dumps(asdict(told)).encode()
        request = json.loads(body)
        self._figures.calls += 1
        self._figures.texts += len(request["texts"])
        self._in_flight += 1
        self._figures.most_in_flight = max(self._figures.most_in_flight, self._in_flight)
        until = asyncio.create_task(asyncio.sleep(self._latency_s))  # the answer is put together meanwhile
        answer = self._embedded(request)
        await until
        self._in_flight -= 1
        return answer

    def _embedded(self, request: dict[str, Any]) -> bytes:
        (kind,) = request["embedding_types"]
        vectors = ",".join(self._vectors[kind][zlib.crc32(text.encode()) % ROWS] for text in request["texts"])
        texts = json.dumps(request["texts"])
        meta = json.dumps({"api_version": {"version": "2"}, "billed_units": {"input_tokens": len(request["texts"])}})
        whole = (
            f'{{"id": "0", "response_type": "embeddings_by_type", "texts": {texts}, "meta": {meta}, '
            f'"embeddings": {{"{kind}": [{vectors}]}}}}'
        )
        return whole.encode()


async def serve(provider: Provider, listener: socket.socket) -> None:
    """Answers whoever connects, until the process is stopped."""
    async with await asyncio.start_server(provider.talk, sock=listener) as server:
        await server.serve_forever()


def main(port_file: Path, latency_s: float) -> None:
    """Serves on a free port, which it writes to a file; who connects before the loop runs waits a little."""
    provider, listener = Provider(latency_s), socket.create_server(("127.0.0.1", 0))
    part = port_file.with_suffix(".part")
    part.write_text(str(listener.getsockname()[1]), encoding="ascii")
    part.replace(port_file)
    uvloop.run(serve(provider, listener))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
