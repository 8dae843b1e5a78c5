"""The memory that calls hold: refusals beyond the budget, slow callers, and what is always answered."""

import asyncio
import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub
from isogloss_server import metrics, system
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.errors import DeadlineExceededError, OverloadedError
from isogloss_server.rpc.call_memory import (
    CALL_BYTES,
    PRESSED_S,
    SLOW_CHECKS,
    SMALL_RESPONSE_BYTES,
    CallLimits,
    CallMemory,
)
from isogloss_server.rpc.server import NO_LIMIT_MS, options
from isogloss_server.settings.declarations import Settings

from tests.server.rpc.test_overload import GatedEmbedder, overload_error
from tests.support.in_process import CARD, CountingEmbedder, ready_registry, serving
from tests.support.manual_clock import ManualClock
from tests.support.raw_http2 import (
    END_STREAM,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    RawCaller,
    frame,
    grpc_message,
)
from tests.support.server_process import ServerProcess

MIB = 1024 * 1024
SIMILARITY_OF_A_MEGABYTE = pb.SimilarityRequest(
    queries=pb.Items(
        vectors=pb.VectorList(
            vectors=pb.Matrix(data=b"\0\0\x80\x3f" * 2048, rows=512, columns=4, element_type=pb.ELEMENT_TYPE_FLOAT32),
            space_id=CARD.space_id,
        )
    )
)


class Memory(CallMemory):
    """A CallMemory with 1 MiB for calls, at most four slow requests of 128 KiB, and a clock of its own."""

    def __init__(self) -> None:
        self.clock, self.process_bytes = ManualClock(), 0
        limits = CallLimits(max_bytes=MIB, max_message_bytes=MIB // 8, request_timeout_s=60.0, response_timeout_s=30.0)
        super().__init__(limits, self.clock, lambda: self.process_bytes)

    async def begin_requests(self, number: int, **options: Any) -> list["asyncio.Task[Any]"]:
        """Begins requests that never arrive."""
        tasks = [asyncio.create_task(self.receive(asyncio.Event().wait, **options)) for _ in range(number)]
        await asyncio.sleep(0)
        return tasks

    def check(self, times: int = SLOW_CHECKS + 1) -> None:
        """Checks the limits repeatedly."""
        for _ in range(times):
            self.end_slow_requests()


class Caller:
    """A caller with an address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def peer(self) -> str:
        """Returns the address."""
        return self.address


async def ended(tasks: list["asyncio.Task[Any]"]) -> list[type[BaseException] | None]:
    """Returns the errors of tasks, None for those that still run, after they could react to a cancellation."""
    for _ in range(3):
        await asyncio.sleep(0)
    return [type(task.exception()) if task.done() else None for task in tasks]


async def test_calls_beyond_the_memory_are_refused_and_health_is_answered() -> None:
    """With full memory, calls are OVERLOADED with a delay before they are read; health is answered; all is freed."""
    embedder = GatedEmbedder()
    async with serving(ready_registry(embedder), max_call_bytes=MIB) as stub:
        calls = [asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[f"text {i}"]))) for i in range(200)]
        await embedder.wait_for_calls(50)
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        error = done.pop().exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert overload_error(error)[:2] == ("OVERLOADED", 1.0)
        assert len(embedder.calls) <= MIB // CALL_BYTES
        assert (await stub.Health(pb.HealthRequest())).models
        health = health_pb2_grpc.HealthStub(stub.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        embedder.open.set()
        await asyncio.wait(calls)
        assert (await stub.Embed(pb.EmbedRequest(texts=["after"]))).embeddings.rows == 1


@pytest.mark.parametrize(
    ("method", "request_message"),
    [("Similarity", SIMILARITY_OF_A_MEGABYTE), ("Embed", pb.EmbedRequest(texts=["text"] * 5000, allow_partial=True))],
)
async def test_a_large_response_beyond_the_memory_is_refused_before_it_is_computed(
    monkeypatch: pytest.MonkeyPatch, method: str, request_message: Any
) -> None:
    """A large response is refused with OVERLOADED while others hold the memory, and sent when they are done."""
    computed: list[str] = []

    original = getattr(Pipeline, method.lower())

    async def compute(pipeline: Pipeline, request: Any) -> Any:
        computed.append(method)
        return await original(pipeline, request)

    embedder = GatedEmbedder()
    settings = {"max_call_bytes": 4 * MIB} if method == "Similarity" else {"max_call_bytes": MIB}
    held = settings["max_call_bytes"] // CALL_BYTES - 20
    async with serving(ready_registry(embedder), **settings) as stub:
        calls = [asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[f"text {i}"]))) for i in range(held)]
        await embedder.wait_for_calls(held)
        monkeypatch.setattr(Pipeline, method.lower(), compute)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await getattr(stub, method)(request_message)
        assert overload_error(raised.value)[0] == "OVERLOADED"
        assert not computed
        embedder.open.set()
        await asyncio.gather(*calls)
        response = await getattr(stub, method)(request_message)
    assert response.ByteSize() > SMALL_RESPONSE_BYTES
    assert computed == [method]


async def test_a_stream_reads_no_further_while_the_memory_is_half_full() -> None:
    """Requests of a stream wait while calls hold more than half of the memory."""
    memory = Memory()
    memory.hold(MIB // 2 + 1)
    waiting = asyncio.ensure_future(memory.room_for_stream())
    assert await ended([waiting]) == [None]
    memory.hold(-1)
    await waiting
    memory.hold(1)
    waiting = asyncio.ensure_future(memory.room_for_stream())
    assert await ended([waiting]) == [None]
    waiting.cancel()


async def test_a_request_that_does_not_arrive_in_time_ends() -> None:
    """After the time limit a call is DEADLINE_EXCEEDED; a stream may wait for its next request for any time."""
    memory = Memory()
    [early], [stream] = await memory.begin_requests(1), await memory.begin_requests(1, in_stream=True)
    memory.clock.advance(59)
    [late] = await memory.begin_requests(1)
    memory.check()
    assert await ended([early, late, stream]) == [None, None, None]
    memory.clock.advance(1)
    memory.check()
    assert await ended([early, late, stream]) == [DeadlineExceededError, None, None]
    late.cancel()
    stream.cancel()


async def test_slow_requests_end_only_if_they_make_the_process_grow() -> None:
    """If slow requests make the process grow by more than the limit, all but four end: the oldest, streams last."""
    memory = Memory()
    memory.check(1)
    streams, calls = await memory.begin_requests(2, in_stream=True), await memory.begin_requests(5)
    memory.process_bytes = MIB
    memory.check()
    assert await ended(calls + streams) == [None] * 7
    memory.process_bytes = MIB + 1
    new = await memory.begin_requests(1)
    memory.check(1)
    assert await ended(calls) == [OverloadedError] * 4 + [None]
    memory.process_bytes = MIB
    memory.check()
    memory.process_bytes = 2 * MIB
    more = await memory.begin_requests(4)
    memory.check(1)
    assert await ended(calls + new + streams + more) == [OverloadedError] * 6 + [OverloadedError] * 2 + [None] * 4
    for task in more:
        task.cancel()


async def test_a_cancellation_of_a_slow_request_stays_a_cancellation() -> None:
    """A caller that cancels while its request arrives ends the call as cancelled."""
    memory = Memory()
    [task] = await memory.begin_requests(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_readers_have_less_time_while_memory_is_scarce() -> None:
    """A response may be unread for the time limit, or for a short time while much of the memory is in use."""
    memory = Memory()
    first, second, third = Caller("first"), Caller("second"), Caller("third")
    memory.sending(first)
    memory.clock.advance(30 - PRESSED_S)
    memory.sending(second)
    memory.sending(third)
    memory.sent(third)
    memory.clock.advance(PRESSED_S)
    assert memory.slow_readers() == {"first"}
    memory.hold(MIB)
    assert memory.slow_readers() == {"first", "second"}


@pytest.mark.parametrize("peer", ["ipv4:{}:{}", "ipv6:%5B::ffff:{}%5D:{}"])
def test_only_the_connections_of_a_peer_are_closed(peer: str) -> None:
    """Closing the connections of one peer closes neither those of others nor the listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        callers = [socket.create_connection(listener.getsockname()) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in callers]
        assert system.close_connections({peer.format(*callers[0].getsockname())}) == 1
        assert callers[0].recv(1) == b""
        accepted[1].sendall(b"x")
        assert callers[1].recv(1) == b"x"
        for connection in callers + accepted:
            connection.close()


def test_freed_memory_is_returned_while_that_helps() -> None:
    """Attempts follow growth of the process, repeat while they return memory, and become rare while they do not."""
    size = 0
    freed = system.FreedMemory(lambda: size)
    assert not any(freed.is_due() for _ in range(100))
    size = system.RELEASE_BYTES

    def checks_until_due() -> int:
        return next(number for number in range(10_000) if freed.is_due())

    assert freed.is_due()
    freed.release()
    first = checks_until_due()
    freed.release()
    assert checks_until_due() > first
    size *= 3
    assert checks_until_due() <= system.RELEASE_CHECKS


def test_freed_memory_is_returned_soon_after_much_was_freed() -> None:
    """When large calls have ended, earlier attempts that returned nothing do not delay the next one."""
    freed = system.FreedMemory(iter([0] + [system.RELEASE_BYTES] * 1_000).__next__)
    for _ in range(5):
        freed.release()
    assert not any(freed.is_due() for _ in range(system.RELEASE_CHECKS))
    assert freed.is_due(soon=True)


async def test_small_services_refuse_large_requests() -> None:
    """A request of reflection or of health that is larger than any valid one is INVALID_ARGUMENT."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        name = "x" * 100_000
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health_pb2_grpc.HealthStub(stub.channel).Check(health_pb2.HealthCheckRequest(service=name))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = reflection_pb2.ServerReflectionRequest(file_by_filename=name)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(stub.channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reflection.ServerReflectionInfo(iter([request])).read()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def impatient_server() -> Any:
    """A server that gives its callers little time."""
    with ServerProcess("--request-timeout-s", "0.2", "--response-timeout-s", "0.2") as process:
        yield process


def test_a_half_sent_request_ends_with_a_status(impatient_server: ServerProcess) -> None:
    """A call whose request stays incomplete ends with a status, while its caller still waits."""
    with RawCaller(impatient_server.address) as caller:
        caller.begin("Embed")
        caller.data(grpc_message(b"\x0a\x04half", length=1000))
        caller.wait_for_status()


def test_the_connection_of_a_caller_that_does_not_read_closes(impatient_server: ServerProcess) -> None:
    """If a response is not read in time, the server closes the connection; other connections stay."""
    with (
        grpc.insecure_channel(impatient_server.address) as channel,
        RawCaller(impatient_server.address, preface=False) as caller,
    ):
        other: Any = health_pb2_grpc.HealthStub(channel)
        other.Check(health_pb2.HealthCheckRequest())
        caller.send(PREFACE + frame(SETTINGS, INITIAL_WINDOW_SIZE.to_bytes(2) + bytes(4)))
        caller.begin("Embed")
        caller.data(grpc_message(pb.EmbedRequest(texts=["hello"]).SerializeToString()), flags=END_STREAM)
        caller.read_to_end()
        assert impatient_server.wait_for("connections closed, because responses were not read in time")
        assert other.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


async def test_thousands_of_calls_at_once_end_in_ok_or_with_a_delay(server: ServerProcess) -> None:
    """Calls that arrive faster than they are begun are answered, or refused with a reason and a delay."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary(
            "/isogloss.v1.EmbeddingService/Embed", response_deserializer=pb.EmbedResponse.FromString
        )

        async def outcome(number: int) -> str:
            try:
                await call(pb.EmbedRequest(texts=[f"number {number}"]).SerializeToString())
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return error.code().name
                return overload_error(error)[0]
            return "OK"

        assert {*await asyncio.gather(*map(outcome, range(3000)))} <= {"OK", "OVERLOADED"}


async def test_calls_beyond_those_of_a_connection_wait_for_earlier_ones() -> None:
    """A client without retries that makes more calls at once than a connection has is refused none."""
    with ServerProcess("--max-connection-calls", "4") as server:
        alone: Any = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(server.address, options=alone) as channel:
            stub = EmbeddingServiceStub(channel)
            responses = await asyncio.gather(*(stub.Embed(pb.EmbedRequest(texts=[f"{n}"])) for n in range(400)))
    assert len(responses) == 400


def test_zero_sets_no_limit_for_a_connection() -> None:
    """The age and the idle time of a connection reach gRPC in milliseconds; 0 is no limit."""
    unlimited = dict(options(Settings(connection_idle_s=0, connection_age_s=1.5)))
    assert unlimited["grpc.max_connection_idle_ms"] == NO_LIMIT_MS
    assert unlimited["grpc.max_connection_age_ms"] == 1500


async def test_a_caller_that_disconnects_while_it_is_answered_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that closes before its response is read leaves no error in the log, and no memory counted."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        before = metrics.REGISTRY.get_sample_value("isogloss_call_bytes")
        with RawCaller(stub.address) as caller:
            caller.begin("Similarity")
            caller.data(grpc_message(SIMILARITY_OF_A_MEGABYTE.SerializeToString()), flags=END_STREAM)
            while (metrics.REGISTRY.get_sample_value("isogloss_call_bytes") or 0) < 2 * MIB:
                await stub.Health(pb.HealthRequest())
            caller.reset()
            while metrics.REGISTRY.get_sample_value("isogloss_call_bytes") != before:
                await stub.Health(pb.HealthRequest())
                await asyncio.sleep(0)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
