"""The load generator, a process of its own: asyncio callers over real gRPC or HTTP.

    python -m benchmarks.drivers.load_generator PROTOCOL ADDRESS

Requests are made ready before the clock starts and answers are not read beyond their status, so that what is timed is
the server. The one exception is the bulk work of isogloss, which goes through the client's embed_many as a user's does.
"""

import asyncio
import base64
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import grpc
import numpy as np
import uvloop
from isogloss import Client
from isogloss.v1 import embedding_pb2 as pb

from benchmarks.drivers.driver import Driver, Outcome, obey, take_turns

METHOD = "/isogloss.v1.EmbeddingService/Embed"
TIMEOUT_S = 300.0


class Grpc:
    """Callers of Embed: of isogloss, and of whatever else speaks its contract."""

    def __init__(self, address: str) -> None:
        sizes = [(f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")]
        self._call: Any = grpc.aio.insecure_channel(address, options=sizes).unary_unary(METHOD)
        self._ready: list[tuple[int, bytes]] = []
        self._callers = 1

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Makes the calls' messages ready."""
        self._callers = callers
        self._ready = [(len(texts), pb.EmbedRequest(texts=texts).SerializeToString()) for texts in calls]

    async def run(self, limit_s: float) -> Outcome:
        """Makes the calls that were made ready."""
        return await take_turns(self._send, self._ready, self._callers, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        answer = pb.EmbedResponse.FromString(await self._send(pb.EmbedRequest(texts=texts).SerializeToString()))
        matrix = answer.embeddings
        rows: list[list[float]] = np.frombuffer(matrix.data, dtype="<f4").reshape(len(texts), -1).tolist()
        return rows

    async def _send(self, message: bytes) -> bytes:
        answer: bytes = await self._call(message, timeout=TIMEOUT_S)
        return answer


class EmbedMany(Grpc):
    """One caller with one long list, through the client's embed_many; a latency is the time between two chunks."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._client = Client(address)
        self._texts: list[str] = []

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Joins the calls into one list."""
        self._texts = list(itertools.chain.from_iterable(calls))
        super().prepare(calls, callers)

    async def run(self, limit_s: float) -> Outcome:
        """Embeds the list, or as much of it as is taken up within limit_s."""
        return await asyncio.to_thread(self._run, limit_s)

    def _run(self, limit_s: float) -> Outcome:
        outcome, began_s = Outcome(), time.perf_counter()
        last_s = began_s
        given = itertools.takewhile(lambda _: time.perf_counter() - began_s <= limit_s, self._texts)
        try:
            for chunk in self._client.embed_many(given):
                now_s = time.perf_counter()
                outcome.latencies_ms.append((now_s - last_s) * 1000)
                outcome.texts += len(chunk)
                last_s = now_s
        except Exception as error:  # noqa: BLE001 - counted and told, as of every other call
            outcome.errors, outcome.first_error = 1, f"{type(error).__name__}: {error}"[:300]
        outcome.wall_s = last_s - began_s
        return outcome


class OpenAi:
    """Callers of an OpenAI-like /embeddings; vectors come as base64, which costs its server the least."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/embeddings"
        self._ready: list[tuple[int, bytes]] = []
        self._callers = 1
        self._session: aiohttp.ClientSession | None = None

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Makes the calls' bodies ready."""
        self._callers = callers
        self._ready = [(len(texts), self._body(texts)) for texts in calls]

    async def run(self, limit_s: float) -> Outcome:
        """Makes the calls that were made ready."""
        return await take_turns(self._send, self._ready, self._callers, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        data = json.loads(await self._send(self._body(texts)))["data"]
        found = (base64.b64decode(row["embedding"]) for row in sorted(data, key=lambda row: row["index"]))
        return [np.frombuffer(row, dtype="<f4").tolist() for row in found]

    @staticmethod
    def _body(texts: Sequence[str]) -> bytes:
        return json.dumps({"model": "model", "input": list(texts), "encoding_format": "base64"}).encode()

    async def _send(self, body: bytes) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT_S)
            )
        async with self._session.post(self._url, data=body, headers={"Content-Type": "application/json"}) as answer:
            content: bytes = await answer.read()
            answer.raise_for_status()
            return content


PROTOCOLS: dict[str, Callable[[str], Any]] = {"grpc": Grpc, "embed-many": EmbedMany, "openai": OpenAi}


async def main(protocol: str, address: str) -> None:
    """Drives the server at `address` until the runner has no more orders."""
    driver: Driver = PROTOCOLS[protocol](address)
    await obey(driver)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
