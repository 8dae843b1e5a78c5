"""EmbedStream as the contract's comments say."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from isogloss.v1 import embedding_pb2 as pb

from tests.support.in_process import CountingEmbedder, ready_registry, serving, serving_until


class Gated(CountingEmbedder):
    """A text "wait NAME" is embedded once the gate NAME is opened; `reached` tells which have come."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.reached: asyncio.Queue[str] = asyncio.Queue()

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def embed(self, texts: Any, *arguments: Any, **options: Any) -> Any:
        word, _, name = texts[0].partition(" ")
        await self.reached.put(name)
        if word == "wait":
            await self.gate(name).wait()
        if word == "fail":
            raise KeyError(name)
        return await super().embed(texts, *arguments, **options)


def ask(number: int, *texts: str, timeout_s: float | None = None, **fields: Any) -> pb.EmbedStreamRequest:
    message = pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=texts, **fields))
    if timeout_s is not None:
        message.timeout.FromNanoseconds(int(timeout_s * 1e9))
    return message


def reason_of(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def reason_of_end(error: grpc.aio.AioRpcError) -> str:
    return reason_of(status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]))


async def test_answers_come_as_they_are_ready() -> None:
    """A request that takes longer is overtaken; each answer has its request's id."""
    embedder = Gated()
    async with serving(ready_registry(embedder)) as stub:
        call = stub.EmbedStream()
        for message in (ask(7, "wait a"), ask(0, "quick"), ask(2**64 - 1, "quick too")):
            await call.write(message)
        first, second = await call.read(), await call.read()
        embedder.gate("a").set()
        third = await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    assert {first.id, second.id} == {0, 2**64 - 1}
    assert third.id == 7
    assert third.response.embeddings.rows == 1


async def test_a_half_close_lets_everything_be_answered() -> None:
    """What was sent before the half-close is answered, then the stream ends with OK."""
    embedder = Gated()
    async with serving(ready_registry(embedder)) as stub:
        call = stub.EmbedStream()
        for number in range(5):
            await call.write(ask(number, f"wait {number}"))
        await call.done_writing()
        for number in range(5):
            embedder.gate(str(number)).set()
        assert sorted([answer.id async for answer in call]) == [0, 1, 2, 3, 4]
        assert await call.code() is grpc.StatusCode.OK


async def test_an_error_answers_for_its_message_alone() -> None:
    """A request that fails answers with its status; the stream and the others go on, and its id is free again."""
    async with serving(ready_registry(Gated())) as stub:
        call = stub.EmbedStream()
        await call.write(ask(1, " "))
        empty = await call.read()
        await call.write(ask(2, "x", model="none"))
        unknown = await call.read()
        await call.write(ask(3, "fail here"))
        failed = await call.read()
        await call.write(ask(1, "fine"))
        fine = await call.read()
        await call.done_writing()
    assert (empty.id, empty.error.code, reason_of(empty.error)) == (1, 3, "EMPTY_TEXT")
    assert (unknown.id, unknown.error.code, reason_of(unknown.error)) == (2, 5, "UNKNOWN_MODEL")
    assert (failed.id, failed.error.code, reason_of(failed.error)) == (3, 13, "INTERNAL")
    assert "here" not in str(failed)
    assert (fine.id, fine.response.embeddings.rows) == (1, 1)


async def test_an_id_in_flight_ends_the_stream() -> None:
    """An id that is still in flight may not be used again: INVALID_ARGUMENT, reason DUPLICATE_ID."""
    async with serving(ready_registry(Gated())) as stub:
        call = stub.EmbedStream()
        await call.write(ask(4, "wait for ever"))
        await call.write(ask(4, "again"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of_end(raised.value) == "DUPLICATE_ID"


async def test_a_messages_own_timeout_is_its_alone() -> None:
    """A request whose timeout passes answers DEADLINE_EXCEEDED; the stream goes on."""
    async with serving(ready_registry(Gated())) as stub:
        call = stub.EmbedStream()
        await call.write(ask(1, "wait for ever", timeout_s=0.01))
        late = await call.read()
        await call.write(ask(2, "in time", timeout_s=600))
        in_time = await call.read()
        await call.write(ask(3, "too late already", timeout_s=-1))
        past = await call.read()
        await call.done_writing()
    assert (late.error.code, reason_of(late.error)) == (4, "DEADLINE_EXCEEDED")
    assert in_time.response.embeddings.rows == 1
    assert past.error.code == 4


async def test_no_more_is_read_than_the_window_holds() -> None:
    """With two requests unanswered a third is not begun until one is answered."""
    embedder = Gated()
    async with serving(ready_registry(embedder), stream_window_requests=2) as stub:
        call = stub.EmbedStream()
        for number in range(3):
            await call.write(ask(number, f"wait {number}"))
        begun = [await embedder.reached.get(), await embedder.reached.get()]
        await stub.Health(pb.HealthRequest())  # a whole call later the third has still not begun
        assert embedder.reached.empty()
        embedder.gate("1").set()
        assert (await call.read()).id == 1
        begun.append(await embedder.reached.get())
        call.cancel()
    assert begun == ["0", "1", "2"]


async def test_the_window_counts_bytes_too() -> None:
    """A request as large as the window is alone in it."""
    embedder = Gated()
    async with serving(ready_registry(embedder), stream_window_bytes=1024) as stub:
        call = stub.EmbedStream()
        await call.write(ask(0, "wait 0", "x" * 2000))
        await call.write(ask(1, "wait 1"))
        assert await embedder.reached.get() == "0"
        await stub.Health(pb.HealthRequest())
        assert embedder.reached.empty()
        embedder.gate("0").set()
        assert await embedder.reached.get() == "1"
        call.cancel()


async def test_cancelling_the_stream_cancels_its_requests() -> None:
    """A caller that cancels its stream leaves nothing working for it."""
    cancelled = asyncio.Event()

    class Hanging(Gated):
        async def embed(self, texts: Any, *arguments: Any, **options: Any) -> Any:
            try:
                return await super().embed(texts, *arguments, **options)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    embedder = Hanging()
    async with serving(ready_registry(embedder)) as stub:
        call = stub.EmbedStream()
        await call.write(ask(1, "wait for ever"))
        await embedder.reached.get()
        call.cancel()
        await cancelled.wait()


async def test_bytes_that_are_no_message_end_the_stream() -> None:
    """Malformed bytes on a stream are INVALID_ARGUMENT, reason MALFORMED_REQUEST."""
    async with serving(ready_registry(Gated())) as stub:
        raw = stub.channel.stream_stream("/isogloss.v1.EmbeddingService/EmbedStream")
        call = raw()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of_end(raised.value) == "MALFORMED_REQUEST"


async def test_a_drain_answers_what_was_read_and_ends_with_draining() -> None:
    """When the server stops taking calls the stream's requests are answered, then it ends: UNAVAILABLE, DRAINING."""
    embedder = Gated()
    stop: Callable[[float], Any]
    async with serving_until(ready_registry(embedder)) as (stub, stop):
        call = stub.EmbedStream()
        await call.write(ask(1, "wait a"))
        await embedder.reached.get()
        stopping = asyncio.ensure_future(stop(600))
        embedder.gate("a").set()
        assert (await call.read()).id == 1
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        await stopping
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of_end(raised.value) == "DRAINING"


async def test_a_reader_that_never_reads_is_read_no_further() -> None:
    """A caller that takes no answers is soon read no more: what it leaves unanswered is bounded."""
    taken = 0

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield ask(taken, *["a text"] * 4000)

    embedder = CountingEmbedder()
    async with serving(ready_registry(embedder), stream_window_requests=4) as stub:
        call = stub.EmbedStream(requests())
        before = -1
        while len(embedder.calls) != before:  # until three more health calls pass with nothing begun
            before = len(embedder.calls)
            for _ in range(3):
                await stub.Health(pb.HealthRequest())
        assert len(embedder.calls) < taken < 2000
        call.cancel()
