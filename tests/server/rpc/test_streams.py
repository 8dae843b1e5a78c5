"""EmbedStream: ids, errors, timeouts, the window, cancellation, and the drain."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from isogloss.v1 import embedding_pb2 as pb

from tests.support.in_process import CountingEmbedder, ready_registry, serving, stoppable_serving


class GatedEmbedder(CountingEmbedder):
    """Embeds the text "wait NAME" when the gate NAME is open, and fails for "fail NAME".

    Attributes:
        gates: The gates by name.
        began: The names of the calls that have begun, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.began: asyncio.Queue[str] = asyncio.Queue()

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def embed(self, texts: Any, *arguments: Any, **options: Any) -> Any:
        word, _, name = texts[0].partition(" ")
        await self.began.put(name)
        if word == "wait":
            await self.gate(name).wait()
        if word == "fail":
            raise KeyError(name)
        return await super().embed(texts, *arguments, **options)


def request(number: int, *texts: str, timeout_s: float | None = None, **fields: Any) -> pb.EmbedStreamRequest:
    message = pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=texts, **fields))
    if timeout_s is not None:
        message.timeout.FromNanoseconds(int(timeout_s * 1e9))
    return message


def reason_of(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def reason_of_error(error: grpc.aio.AioRpcError) -> str:
    return reason_of(status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]))


async def test_responses_are_sent_when_they_are_ready() -> None:
    """A later request that is ready first is answered first; each response has the id of its request."""
    embedder = GatedEmbedder()
    async with serving(ready_registry(embedder)) as stub:
        call = stub.EmbedStream()
        for message in (request(7, "wait a"), request(0, "quick"), request(2**64 - 1, "quick too")):
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


async def test_all_requests_before_a_half_close_are_answered() -> None:
    """Requests that were sent before the half-close are answered, and then the stream ends with OK."""
    embedder = GatedEmbedder()
    async with serving(ready_registry(embedder)) as stub:
        call = stub.EmbedStream()
        for number in range(5):
            await call.write(request(number, f"wait {number}"))
        await call.done_writing()
        for number in range(5):
            embedder.gate(str(number)).set()
        assert sorted([response.id async for response in call]) == [0, 1, 2, 3, 4]
        assert await call.code() is grpc.StatusCode.OK


async def test_an_error_affects_only_its_own_request() -> None:
    """A request that fails is answered with its status; the stream continues, and its id can be used again."""
    async with serving(ready_registry(GatedEmbedder())) as stub:
        call = stub.EmbedStream()
        await call.write(request(1, " "))
        empty = await call.read()
        await call.write(request(2, "x", model="none"))
        unknown = await call.read()
        await call.write(request(3, "fail here"))
        failed = await call.read()
        await call.write(request(1, "fine"))
        fine = await call.read()
        await call.done_writing()
    assert (empty.id, empty.error.code, reason_of(empty.error)) == (1, 3, "EMPTY_TEXT")
    assert (unknown.id, unknown.error.code, reason_of(unknown.error)) == (2, 5, "UNKNOWN_MODEL")
    assert (failed.id, failed.error.code, reason_of(failed.error)) == (3, 13, "INTERNAL")
    assert "here" not in str(failed)
    assert (fine.id, fine.response.embeddings.rows) == (1, 1)


async def test_a_duplicate_id_ends_the_stream() -> None:
    """A second request with an id in flight ends the stream with INVALID_ARGUMENT, reason DUPLICATE_ID."""
    async with serving(ready_registry(GatedEmbedder())) as stub:
        call = stub.EmbedStream()
        await call.write(request(4, "wait for ever"))
        await call.write(request(4, "again"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of_error(raised.value) == "DUPLICATE_ID"


async def test_the_timeout_of_a_request_affects_only_that_request() -> None:
    """A request that exceeds its timeout is answered with DEADLINE_EXCEEDED; the stream continues."""
    async with serving(ready_registry(GatedEmbedder())) as stub:
        call = stub.EmbedStream()
        await call.write(request(1, "wait for ever", timeout_s=0.01))
        late = await call.read()
        await call.write(request(2, "in time", timeout_s=600))
        in_time = await call.read()
        await call.write(request(3, "too late already", timeout_s=-1))
        past = await call.read()
        await call.done_writing()
    assert (late.error.code, reason_of(late.error)) == (4, "DEADLINE_EXCEEDED")
    assert in_time.response.embeddings.rows == 1
    assert past.error.code == 4


async def test_the_window_limits_the_unanswered_requests() -> None:
    """With a window of two, a third request begins after one of the first two is answered."""
    embedder = GatedEmbedder()
    async with serving(ready_registry(embedder), stream_window_requests=2) as stub:
        call = stub.EmbedStream()
        for number in range(3):
            await call.write(request(number, f"wait {number}"))
        began = [await embedder.began.get(), await embedder.began.get()]
        await stub.Health(pb.HealthRequest())  # after a whole call the third has not begun
        assert embedder.began.empty()
        embedder.gate("1").set()
        assert (await call.read()).id == 1
        began.append(await embedder.began.get())
        call.cancel()
    assert began == ["0", "1", "2"]


async def check_one_request_at_a_time(window_bytes: int, *texts: str) -> None:
    """Checks that with this window, a request begins only when one with `texts` is answered."""
    embedder = GatedEmbedder()
    async with serving(ready_registry(embedder), stream_window_bytes=window_bytes) as stub:
        call = stub.EmbedStream()
        await call.write(request(0, "wait 0", *texts))
        await call.write(request(1, "wait 1"))
        assert await embedder.began.get() == "0"
        await stub.Health(pb.HealthRequest())
        assert embedder.began.empty()
        embedder.gate("0").set()
        assert await embedder.began.get() == "1"
        call.cancel()


async def test_the_window_limits_the_unanswered_bytes() -> None:
    """While a request as large as the window is unanswered, no other request begins."""
    await check_one_request_at_a_time(1024, "x" * 2000)


async def test_cancelling_the_stream_cancels_its_requests() -> None:
    """The requests in flight of a cancelled stream are cancelled."""
    cancelled = asyncio.Event()

    class Cancelled(GatedEmbedder):
        async def embed(self, texts: Any, *arguments: Any, **options: Any) -> Any:
            try:
                return await super().embed(texts, *arguments, **options)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    embedder = Cancelled()
    async with serving(ready_registry(embedder)) as stub:
        call = stub.EmbedStream()
        await call.write(request(1, "wait for ever"))
        await embedder.began.get()
        call.cancel()
        await cancelled.wait()


async def test_malformed_bytes_end_the_stream() -> None:
    """Malformed bytes on a stream end it with INVALID_ARGUMENT, reason MALFORMED_REQUEST."""
    async with serving(ready_registry(GatedEmbedder())) as stub:
        raw = stub.channel.stream_stream("/isogloss.v1.EmbeddingService/EmbedStream")
        call = raw()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of_error(raised.value) == "MALFORMED_REQUEST"


async def test_a_drain_answers_the_requests_in_flight_and_ends_the_stream() -> None:
    """In a drain, requests that were read are answered, and then the stream ends with UNAVAILABLE, DRAINING."""
    embedder = GatedEmbedder()
    stop: Callable[[float], Any]
    async with stoppable_serving(ready_registry(embedder)) as (stub, stop):
        call = stub.EmbedStream()
        await call.write(request(1, "wait a"))
        await embedder.began.get()
        stopping = asyncio.ensure_future(stop(600))
        embedder.gate("a").set()
        assert (await call.read()).id == 1
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        await stopping
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of_error(raised.value) == "DRAINING"


async def test_a_caller_that_reads_no_responses_is_bounded() -> None:
    """The server stops reading the requests of a caller that reads no responses."""
    sent = 0

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        nonlocal sent
        while True:
            sent += 1
            yield request(sent, *["a text"] * 4000)

    embedder = CountingEmbedder()
    async with serving(ready_registry(embedder), stream_window_requests=4) as stub:
        call = stub.EmbedStream(requests())
        before = -1
        while len(embedder.calls) != before:  # until no request begins during three calls
            before = len(embedder.calls)
            for _ in range(3):
                await stub.Health(pb.HealthRequest())
        assert len(embedder.calls) < sent < 2000
        call.cancel()


async def test_the_window_counts_responses_before_they_are_computed() -> None:
    """A request whose response is as large as the window is answered before the next one begins."""
    await check_one_request_at_a_time(16 * 1024, *["a"] * 500)  # 500 rows of 16 bytes and their counts
