"""Load generator: asyncio callers over gRPC or HTTP, in a process of their own.

    python -m benchmarks.drivers.load_generator PROTOCOL ADDRESS

Requests are serialized before the clock starts and responses are not parsed, so the figures measure the server. The
exception is the bulk workload of isogloss, which uses the client's embed_many as an application does.
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

from benchmarks.drivers.driver import Driver, RunResult, run_closed_loop, serve_runner

METHOD = "/isogloss.v1.EmbeddingService/Embed"
TIMEOUT_S = 300.0


class GrpcDriver:
    """Calls Embed of isogloss or of another server with the same contract."""

    def __init__(self, address: str) -> None:
        options = [(f"grpc.max_{direction}_message_length", -1) for direction in ("receive", "send")]
        self._call: Any = grpc.aio.insecure_channel(address, options=options).unary_unary(METHOD)
        self._requests: list[tuple[int, bytes]] = []
        self._callers = 1

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Serializes the requests."""
        self._callers = callers
        self._requests = [(len(texts), pb.EmbedRequest(texts=texts).SerializeToString()) for texts in calls]

    async def run(self, limit_s: float) -> RunResult:
        """Sends the prepared requests."""
        return await run_closed_loop(self._send, self._requests, self._callers, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        response = pb.EmbedResponse.FromString(await self._send(pb.EmbedRequest(texts=texts).SerializeToString()))
        matrix = response.embeddings
        rows: list[list[float]] = np.frombuffer(matrix.data, dtype="<f4").reshape(len(texts), -1).tolist()
        return rows

    async def _send(self, message: bytes) -> bytes:
        response: bytes = await self._call(message, timeout=TIMEOUT_S)
        return response


class EmbedManyDriver(GrpcDriver):
    """Sends all texts as one sequence through the client's embed_many; reports no latencies."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._client = Client(address)
        self._texts: list[str] = []

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Joins the texts of all calls into one list."""
        self._texts = list(itertools.chain.from_iterable(calls))
        super().prepare(calls, callers)

    async def run(self, limit_s: float) -> RunResult:
        """Embeds the texts that embed_many reads within limit_s seconds."""
        return await asyncio.to_thread(self._run, limit_s)

    def _run(self, limit_s: float) -> RunResult:
        result, start_s = RunResult(), time.perf_counter()
        last_s = start_s
        texts = itertools.takewhile(lambda _: time.perf_counter() - start_s <= limit_s, self._texts)
        try:
            for chunk in self._client.embed_many(texts):
                last_s = time.perf_counter()
                result.texts += len(chunk)
        except Exception as error:  # noqa: BLE001 - counted and reported like the error of any other call
            result.errors, result.first_error = 1, f"{type(error).__name__}: {error}"[:300]
        result.wall_s = last_s - start_s
        return result


class OpenAiDriver:
    """Calls an OpenAI-compatible /embeddings endpoint; asks for base64 vectors, the cheapest form for the server."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/embeddings"
        self._requests: list[tuple[int, bytes]] = []
        self._callers = 1
        self._session: aiohttp.ClientSession | None = None

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Serializes the requests."""
        self._callers = callers
        self._requests = [(len(texts), self._body(texts)) for texts in calls]

    async def run(self, limit_s: float) -> RunResult:
        """Sends the prepared requests."""
        return await run_closed_loop(self._send, self._requests, self._callers, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        data = json.loads(await self._send(self._body(texts)))["data"]
        rows = (base64.b64decode(row["embedding"]) for row in sorted(data, key=lambda row: row["index"]))
        return [np.frombuffer(row, dtype="<f4").tolist() for row in rows]

    @staticmethod
    def _body(texts: Sequence[str]) -> bytes:
        return json.dumps({"model": "model", "input": list(texts), "encoding_format": "base64"}).encode()

    async def _send(self, body: bytes) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(TIMEOUT_S)
            )
        async with self._session.post(self._url, data=body, headers={"Content-Type": "application/json"}) as response:
            content: bytes = await response.read()
            response.raise_for_status()
            return content


DRIVERS: dict[str, Callable[[str], Any]] = {"grpc": GrpcDriver, "embed-many": EmbedManyDriver, "openai": OpenAiDriver}


async def main(protocol: str, address: str) -> None:
    """Drives the server at `address` until the runner closes standard input."""
    driver: Driver = DRIVERS[protocol](address)
    await serve_runner(driver)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
