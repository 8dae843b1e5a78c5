"""The load of the cancelled benchmark, a process of its own: makes calls of one kind, prints how they ended as JSON.

python -m benchmarks.peers.cancelled ADDRESS KIND CALLS
"""

import asyncio
import collections
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.models.model_folder import BUNDLED

from benchmarks import models, works

SERVICE = "/isogloss.v1.EmbeddingService"
WATCH = "/grpc.health.v1.Health/Watch"
CALLERS = 32
CALLS_A_CONNECTION = 10  # that are in flight when it breaks
CONNECTING_S = 0.005  # of HTTP/2, after TCP's
LONGEST_S = (
    0.008  # until a call is given up: before it was read, while it waits, while it is computed, or while it is sent
)
OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Calls:
    """Calls to one server, each of which returns how it ended."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._random = random.Random(works.SEED)  # noqa: S311 - nothing secret
        self._texts = works.texts(works.WORKS["batch"], 400)

    async def answered(self) -> str:
        """An Embed that is answered."""
        await self._embed(BUNDLED)
        return "OK"

    async def cancelled(self) -> str:
        """An Embed that its caller cancels."""
        call = self._embed(models.MULTILINGUAL)
        await self._while()
        return "CANCELLED" if call.cancel() else "OK"

    async def late(self) -> str:
        """An Embed that runs into its deadline."""
        await self._embed(models.MULTILINGUAL, timeout=self._random.uniform(0.001, LONGEST_S))
        return "OK"

    async def stream_answered(self) -> str:
        """An EmbedStream that is answered to its end."""
        call = self._stream()
        await call.write(self._requests(BUNDLED))
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
        return "OK"

    async def stream_cancelled(self) -> str:
        """An EmbedStream whose caller cancels it, with one request answered and one in flight."""
        call = self._stream()
        await call.write(self._requests(BUNDLED))
        await call.read()
        await call.write(self._requests(models.MULTILINGUAL))
        await self._while()
        return "CANCELLED" if call.cancel() else "OK"

    async def stream_late(self) -> str:
        """An EmbedStream that runs into its deadline."""
        call = self._stream(timeout=self._random.uniform(0.001, LONGEST_S))
        try:
            await call.write(self._requests(models.MULTILINGUAL))
        except grpc.aio.AioRpcError:  # INTERNAL, as grpc.aio calls a write on a stream that has ended meanwhile
            return "DEADLINE_EXCEEDED"
        while await call.read() is not grpc.aio.EOF:
            pass
        return (await call.code()).name

    async def watch_cancelled(self) -> str:
        """A Watch of grpc.health.v1 that its caller cancels."""
        call = self._watch()
        await call.read()
        return "CANCELLED" if call.cancel() else "OK"

    async def broken(self) -> str:
        """CALLS_A_CONNECTION calls, Embed, EmbedStream and Watch in turn, whose connection breaks."""
        async with _breaking(self.address) as (address, reached, broken):
            one = Calls(address)
            calls = [one.once(number) for number in range(CALLS_A_CONNECTION)]
            ends = asyncio.gather(*calls, return_exceptions=True)
            await reached.wait()
            await asyncio.sleep(CONNECTING_S)
            await self._while()
            broken()
            await ends
            await one.close()
        return "UNAVAILABLE"

    async def once(self, number: int) -> None:
        """Makes a call, and waits for its end, which is not to come."""
        if number % 3 == 0:
            await self._embed(models.MULTILINGUAL)
        elif number % 3 == 1:
            call = self._stream()
            await call.write(self._requests(models.MULTILINGUAL))
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            watch = self._watch()
            while await watch.read() is not grpc.aio.EOF:
                pass

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def _while(self) -> None:
        await asyncio.sleep(self._random.uniform(0, LONGEST_S))

    def _embed(self, model: str, **options: Any) -> Any:
        call: Any = self._channel.unary_unary(f"{SERVICE}/Embed")
        return call(self._request(model).SerializeToString(), **options)

    def _stream(self, **options: Any) -> Any:
        call: Any = self._channel.stream_stream(f"{SERVICE}/EmbedStream")
        return call(**options)

    def _watch(self) -> Any:
        call: Any = self._channel.unary_stream(WATCH)
        return call(health_pb2.HealthCheckRequest().SerializeToString())

    def _request(self, model: str) -> pb.EmbedRequest:
        return pb.EmbedRequest(texts=self._random.sample(self._texts, 2), model=model)

    def _requests(self, model: str) -> bytes:
        return pb.EmbedStreamRequest(id=self._random.getrandbits(60), request=self._request(model)).SerializeToString()


@contextlib.asynccontextmanager
async def _breaking(address: str) -> AsyncIterator[tuple[str, asyncio.Event, Callable[[], None]]]:
    """Gives the address of a way to a server, if it was taken, and what breaks it off, as a caller's death does."""
    reached = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []
    is_broken = False

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, far_writer))
        if is_broken:  # meanwhile
            broken()
        reached.set()
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    def broken() -> None:
        nonlocal is_broken
        is_broken = True
        server.close()
        for writer in writers:
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", reached, broken


async def main(address: str, kind: str, calls: str) -> None:
    """Makes the calls of one kind, CALLERS at a time, and prints how they ended."""
    made = Calls(address)
    work: Callable[[], Awaitable[str]] = getattr(made, kind)
    ends: collections.Counter[str] = collections.Counter()
    left = int(calls) // (CALLS_A_CONNECTION if kind == "broken" else 1)

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            try:
                ends[await work()] += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await made.close()
    print(json.dumps(dict(ends)), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
