"""Bounds of connections and calls, as an attacker meets them: each is exceeded over a real socket."""

import asyncio
import contextlib
import struct

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.rpc import codec, server
from isogloss_server.rpc.call_memory import ALWAYS_SHARE, CALL_BYTES

from tests.server.rpc.test_overload import overload_error
from tests.support.in_process import CountingEmbedder, ready_registry, serving
from tests.support.raw_http2 import (
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    RawCaller,
    call_headers,
    frame,
    grpc_message,
)
from tests.support.server_process import ServerProcess

MIB = 1024 * 1024
SHORT_S = 0.2  # a limit that a test waits for
STREAM_WINDOW_BYTES = 65_535  # bytes that a stream may send at first (RFC 9113, 6.9.2)
EMBED = grpc_message(pb.EmbedRequest(texts=["hello"]).SerializeToString())


async def received_to_end(caller: RawCaller) -> bytes:
    """Returns all bytes of the server until it closes the connection."""
    return await asyncio.to_thread(caller.read_to_end)


@pytest.mark.parametrize(
    "sent",
    [b"", PREFACE[:10], PREFACE, PREFACE + frame(SETTINGS, b"\0" * 60)[:20]],
    ids=["nothing", "half the preface", "no settings", "half of the settings"],
)
async def test_a_connection_that_does_not_begin_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A connection without the first bytes of HTTP/2 is closed after the time for them."""
    monkeypatch.setattr(server, "HANDSHAKE_S", SHORT_S)
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with RawCaller(stub.address, preface=False) as caller:
            caller.send(sent)
            assert b"settings before handshake timeout" in await received_to_end(caller)
        assert (await stub.Health(pb.HealthRequest())).models


HALF_OF_HEADERS = frame(HEADERS, call_headers("Embed")[:30], stream=1)  # more would follow in CONTINUATION
HALF_A_FRAME = frame(HEADERS, call_headers("Embed"), flags=END_HEADERS, stream=1)[:20]


@pytest.mark.parametrize("sent", [b"", HALF_OF_HEADERS, HALF_A_FRAME], ids=["nothing", "half of headers", "half frame"])
async def test_a_connection_without_a_call_is_closed(sent: bytes) -> None:
    """A connection whose headers of a call stay incomplete is idle, and closed like one that sends nothing."""
    async with serving(ready_registry(CountingEmbedder()), connection_idle_s=SHORT_S) as stub:
        with RawCaller(stub.address) as caller:
            caller.send(sent)
            assert b"connection idle" in await received_to_end(caller)


async def test_a_call_in_flight_finishes_on_a_connection_that_is_too_old() -> None:
    """At the age limit, the server sends GOAWAY, and a call that has begun is answered."""
    async with serving(ready_registry(CountingEmbedder()), connection_age_s=SHORT_S) as stub:
        with RawCaller(stub.address) as caller:
            caller.begin("Embed")
            await asyncio.to_thread(caller.wait_for, GOAWAY)
            caller.data(EMBED, flags=END_STREAM)
            await asyncio.to_thread(caller.wait_for_status)


@pytest.mark.parametrize("method", [None, "EmbedStream"])
async def test_a_connection_whose_peer_does_not_respond_is_closed(
    monkeypatch: pytest.MonkeyPatch, method: str | None
) -> None:
    """A peer that does not acknowledge a ping loses its connection, with or without a call."""
    monkeypatch.setattr(server, "KEEPALIVE_S", SHORT_S)
    monkeypatch.setattr(server, "KEEPALIVE_TIMEOUT_S", SHORT_S)
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with RawCaller(stub.address) as caller:
            if method:
                caller.begin(method)
            assert b"ping_timeout" in await received_to_end(caller)


async def test_a_connection_that_pings_too_often_is_closed() -> None:
    """Pings without calls, one after the other, end the connection."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with RawCaller(stub.address) as caller:
            caller.send(frame(PING, bytes(8)) * 10)
            assert b"too_many_pings" in await received_to_end(caller)


async def test_a_call_beyond_those_of_a_connection_is_reset() -> None:
    """A caller that ignores the announced limit loses the calls beyond it, and not those below it."""
    async with serving(ready_registry(CountingEmbedder()), max_connection_calls=2) as stub:
        with RawCaller(stub.address) as caller:
            for stream in (1, 3, 5):
                caller.begin("Embed", stream=stream)
            await asyncio.to_thread(caller.wait_for, RST_STREAM, stream=5)
            for stream in (1, 3):
                caller.data(EMBED, stream=stream, flags=END_STREAM)
                await asyncio.to_thread(caller.wait_for_status, stream)


async def test_metadata_below_its_limit_is_always_accepted() -> None:
    """No call with metadata below the limit is refused, at whatever size; the next test has one beyond it."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        for _ in range(20):
            await stub.Embed(pb.EmbedRequest(texts=["hello"]), metadata=[("x-large", "a" * 15_000)])


async def test_metadata_beyond_its_limit_is_refused() -> None:
    """A call with more metadata than 16 KiB is RESOURCE_EXHAUSTED."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Embed(pb.EmbedRequest(texts=["hello"]), metadata=[("x-large", "a" * 17_000)])
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_message_that_is_too_large_is_refused_before_it_arrives() -> None:
    """The length in front of a message is enough to refuse it."""
    async with serving(ready_registry(CountingEmbedder()), max_request_bytes=4096) as stub:
        with RawCaller(stub.address) as caller:
            caller.begin("Embed")
            caller.data(grpc_message(b"", length=2 * MIB))
            await asyncio.to_thread(caller.wait_for_status)


async def test_a_request_of_too_many_fields_is_refused() -> None:
    """A request of more texts than any can have is TOO_MANY_TEXTS."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Embed(pb.EmbedRequest(texts=[""] * (codec.MAX_FIELDS + 1)))
    assert b"TOO_MANY_TEXTS" in dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]


async def test_watches_are_refused_beyond_twice_the_memory_for_calls() -> None:
    """Streams that are always answered are bounded too; when they end, health is answered again."""
    async with serving(ready_registry(CountingEmbedder()), max_call_bytes=MIB) as stub:
        health = health_pb2_grpc.HealthStub(stub.channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(ALWAYS_SHARE * MIB // CALL_BYTES)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health.Watch(health_pb2.HealthCheckRequest()).read()
        assert overload_error(raised.value)[0] == "OVERLOADED"
        for watch in watches:
            watch.cancel()
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await health.Check(health_pb2.HealthCheckRequest())
                break


async def test_calls_that_cannot_begin_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the event loop is busy, calls beyond the limit are reset, and the server serves on."""
    monkeypatch.setattr(server, "MAX_PENDING_CALLS", 8)
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with RawCaller(stub.address) as caller:
            for number in range(64):
                caller.begin("Embed", stream=2 * number + 1)
            caller.wait_for_status(stream=127)  # blocks the event loop
        assert (await stub.Embed(pb.EmbedRequest(texts=["hello"]))).embeddings.rows == 1


def test_unfinished_requests_end_if_they_fill_the_memory() -> None:
    """Requests that stop in the middle end with a status if the process has grown by the memory for calls.

    The memory for calls has room for all of them, as it counts them. They send 90 MB, because the process may have some
    memory free from its start.
    """
    part = struct.pack(">BI", 0, 8 * MIB) + bytes(STREAM_WINDOW_BYTES - 1000)
    with ServerProcess("--max-call-bytes", str(32 * MIB)) as process, contextlib.ExitStack() as stack:
        callers = [stack.enter_context(RawCaller(process.address)) for _ in range(24)]
        for caller in callers:
            for stream in range(1, 120, 2):
                caller.begin("Embed", stream=stream)
                caller.data(part, stream=stream)
        callers[0].wait_for_status()
        assert process.wait_for("call")["code"] == "RESOURCE_EXHAUSTED"
        with grpc.insecure_channel(process.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
