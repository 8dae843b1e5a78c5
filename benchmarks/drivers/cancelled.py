"""Load generator of the `cancelled` workload: makes calls of one kind and prints their status codes as JSON.

python -m benchmarks.drivers.cancelled ADDRESS KIND CALLS
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

from benchmarks import models, workloads

SERVICE = "/isogloss.v1.EmbeddingService"
WATCH = "/grpc.health.v1.Health/Watch"
CALLERS = 32
CALLS_PER_CONNECTION = 10  # in flight when the connection breaks
HTTP2_CONNECT_S = 0.005  # for the HTTP/2 handshake after the TCP connection
# Upper bound of the random time before a call ends early: while it is read, queued, computed or sent.
MAX_DELAY_S = 0.008
OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Calls:
    """Calls to one server, a method for each kind; a method returns the name of the status code."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._random = random.Random(workloads.SEED)  # noqa: S311 - not for cryptography
        self._texts = workloads.texts(workloads.WORKLOADS["batch"], 400)

    async def answered(self) -> str:
        """Makes an Embed call that succeeds."""
        await self._embed(BUNDLED)
        return "OK"

    async def cancelled(self) -> str:
        """Cancels an Embed call."""
        call = self._embed(models.MULTILINGUAL)
        await self._random_delay()
        return "CANCELLED" if call.cancel() else "OK"

    async def late(self) -> str:
        """Makes an Embed call that exceeds its deadline."""
        await self._embed(models.MULTILINGUAL, timeout=self._random.uniform(0.001, MAX_DELAY_S))
        return "OK"

    async def stream_answered(self) -> str:
        """Makes an EmbedStream call that succeeds."""
        call = self._stream()
        await call.write(self._requests(BUNDLED))
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
        return "OK"

    async def stream_cancelled(self) -> str:
        """Cancels an EmbedStream call that has one finished request and one in flight."""
        call = self._stream()
        await call.write(self._requests(BUNDLED))
        await call.read()
        await call.write(self._requests(models.MULTILINGUAL))
        await self._random_delay()
        return "CANCELLED" if call.cancel() else "OK"

    async def stream_late(self) -> str:
        """Makes an EmbedStream call that exceeds its deadline."""
        call = self._stream(timeout=self._random.uniform(0.001, MAX_DELAY_S))
        try:
            await call.write(self._requests(models.MULTILINGUAL))
        except grpc.aio.AioRpcError:  # grpc.aio raises INTERNAL for a write to a stream that has ended
            return "DEADLINE_EXCEEDED"
        while await call.read() is not grpc.aio.EOF:
            pass
        return (await call.code()).name

    async def watch_cancelled(self) -> str:
        """Cancels a Watch call of grpc.health.v1."""
        call = self._watch()
        await call.read()
        return "CANCELLED" if call.cancel() else "OK"

    async def broken(self) -> str:
        """Breaks a connection with CALLS_PER_CONNECTION calls of Embed, EmbedStream and Watch in flight."""
        async with _breakable_proxy(self.address) as (address, connected, break_off):
            through_proxy = Calls(address)
            calls = [through_proxy.until_broken(number) for number in range(CALLS_PER_CONNECTION)]
            ended = asyncio.gather(*calls, return_exceptions=True)
            await connected.wait()
            await asyncio.sleep(HTTP2_CONNECT_S)
            await self._random_delay()
            break_off()
            await ended
            await through_proxy.close()
        return "UNAVAILABLE"

    async def until_broken(self, number: int) -> None:
        """Makes an Embed, EmbedStream or Watch call, by `number`, and waits until it fails."""
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

    async def _random_delay(self) -> None:
        await asyncio.sleep(self._random.uniform(0, MAX_DELAY_S))

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
async def _breakable_proxy(address: str) -> AsyncIterator[tuple[str, asyncio.Event, Callable[[], None]]]:
    """Runs a TCP proxy to `address`.

    Yields the address of the proxy, an event that is set on its first connection, and a function that resets all
    connections as the death of a caller does.
    """
    connected = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []
    is_broken = False

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, upstream_writer))
        if is_broken:  # while the upstream connection was opening
            break_off()
        connected.set()
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    def break_off() -> None:
        nonlocal is_broken
        is_broken = True
        server.close()
        for writer in writers:
            writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connected, break_off


async def main(address: str, kind: str, calls: str) -> None:
    """Makes calls of one kind from CALLERS concurrent callers and prints the count of each status code."""
    source = Calls(address)
    call: Callable[[], Awaitable[str]] = getattr(source, kind)
    codes: collections.Counter[str] = collections.Counter()
    remaining = int(calls) // (CALLS_PER_CONNECTION if kind == "broken" else 1)

    async def caller() -> None:
        nonlocal remaining
        while remaining > 0:
            remaining -= 1
            try:
                codes[await call()] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await source.close()
    print(json.dumps(dict(codes)), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
