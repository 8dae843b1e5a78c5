"""embed_many ended early, by the caller or by closing the client, leaves no call, thread or task."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from isogloss import AsyncClient, CallCancelledError, Client, FailedPreconditionError, InvalidArgumentError
from isogloss.testing import FakeServer, Gate, Received
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.support.bulk import check_rows, numbered

LEFT = """
from isogloss import Client
client = Client('{address}')
chunks = client.embed_many((str(number) for number in range(10**6)), chunk_texts=10)
next(chunks)
"""


def join_threads() -> None:
    """Waits for the end of gRPC's threads that wait for responses."""
    for thread in waiting_threads():
        thread.join(30)
        assert not thread.is_alive()


def in_turn(server: FakeServer, gate: Gate) -> Iterator[str]:
    """Yields texts; `gate` holds the request of the second, and the first is answered only after that."""
    arrived = threading.Event()

    def arrive(received: Received) -> None:
        """Delays the first request until the second is held."""
        if received.method == "Embed" and not arrived.is_set():
            arrived.set()
            gate.wait_until_held()

    server.on_request = arrive
    yield "first"
    assert arrived.wait(30)
    yield from numbered(100)


def waiting_threads() -> list[threading.Thread]:
    """Returns gRPC's threads that wait for responses, which are named after their function."""
    return [thread for thread in threading.enumerate() if thread.name.endswith("(_run)")]


class Interceptor(grpc.UnaryUnaryClientInterceptor):
    """Counts the calls that it forwards, as tracing does, or raises."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure
        self.ended: SimpleQueue[Any] = SimpleQueue()

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Returns the call."""
        if self._failure is not None and details.method.endswith("/Embed"):
            raise self._failure
        call = continuation(details, request)
        call.add_done_callback(self.ended.put)
        return call


def intercepted(client: Client, interceptor: Any) -> Client:
    """Returns `client` with an interceptor on its channel."""
    client._stub = EmbeddingServiceStub(grpc.intercept_channel(client._channel, interceptor))
    return client


def test_interceptors_see_every_call_and_its_end(client: Client, server: FakeServer) -> None:
    """embed_many yields all chunks and repeats a lost call behind an interceptor, such as that of a tracer."""
    server.fail_next("Embed", code="UNAVAILABLE", reason="", after=1)
    interceptor = Interceptor()
    with intercepted(client, interceptor) as used:
        check_rows(list(used.embed_many(numbered(20), chunk_texts=5)), numbered(20))
    assert interceptor.ended.qsize() == 1 + 5
    join_threads()


def test_an_error_of_an_interceptor_is_raised(client: Client) -> None:
    """An exception that is not an RpcError ends embed_many instead of leaving it waiting."""
    failure = RuntimeError("of the interceptor")
    with pytest.raises(RuntimeError) as raised:
        list(intercepted(client, Interceptor(failure)).embed_many(["a"]))
    assert raised.value is failure
    join_threads()


def test_the_calls_of_embed_many_share_one_thread(client: Client, server: FakeServer) -> None:
    """No call has a thread of its own."""
    chunks = client.embed_many(numbered(200), chunk_texts=5)
    for _ in range(10):
        next(chunks)
    server.wait_until_idle()  # a call that is answered later would leave fewer to be held
    with server.hold("Embed") as gate:
        reading = threading.Thread(target=list, args=(chunks,))
        reading.start()
        gate.wait_until_held(8)
        assert len(waiting_threads()) == 1
    reading.join(30)
    join_threads()


@pytest.mark.parametrize("leave", ["close", "forget"])
def test_leaving_the_iterator_early_cancels_the_calls(client: Client, server: FakeServer, leave: str) -> None:
    """Closing the iterator and leaving its last reference each cancel the calls; no thread remains."""
    gate = server.hold("Embed", times=1)
    chunks = client.embed_many(in_turn(server, gate), chunk_texts=1, window_chunks=2)
    for _ in chunks:  # sends the second chunk, which is held, before it yields the first
        break
    gate.wait_until_held()
    if leave == "close":
        chunks.close()
    del chunks
    server.wait_until_idle()
    join_threads()
    gate.open()
    assert len(client.embed(["and on"])) == 1


def test_an_unfinished_iterator_does_not_block_the_exit_of_the_program(server: FakeServer) -> None:
    """An iterator that exists at the interpreter's shutdown does not delay it."""
    program = LEFT.replace("{address}", server.target)
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


async def test_closing_the_asynchronous_iterator_leaves_no_task(server: FakeServer) -> None:
    """Closing the asynchronous iterator cancels the calls; no task remains."""
    gate = server.hold("Embed", times=1)
    texts = in_turn(server, gate)

    async def source() -> AsyncIterator[str]:
        """Yields the texts without blocking the event loop."""
        while (text := await asyncio.to_thread(next, texts, None)) is not None:
            yield text

    async with AsyncClient(server.target) as client:
        async with aclosing(client.embed_many(source(), chunk_texts=1, window_chunks=2)) as chunks:
            await anext(chunks)  # sends the second chunk, which is held, before it yields the first
            await asyncio.to_thread(gate.wait_until_held)
        await asyncio.to_thread(server.wait_until_idle)
        await client.health()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "isogloss" in repr(task)]


async def test_cancelling_the_task_cancels_the_calls(server: FakeServer) -> None:
    """asyncio.CancelledError is raised unchanged, and the calls end."""
    gate = server.hold("Embed")

    async def iterate(client: AsyncClient) -> None:
        """Waits for a response that does not arrive."""
        async for _ in client.embed_many(["a"]):
            pass

    async with AsyncClient(server.target) as client:
        task = asyncio.create_task(iterate(client))
        await asyncio.to_thread(gate.wait_until_held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.wait_until_idle)


@pytest.mark.parametrize("turns", range(0, 40, 2))
async def test_cancellation_is_raised_wherever_the_iteration_waits(server: FakeServer, turns: int) -> None:
    """A task that is cancelled after any number of turns of the event loop ends with asyncio.CancelledError."""

    async def iterate(client: AsyncClient) -> None:
        """Reads more chunks than can arrive in so few turns."""
        async for _ in client.embed_many(numbered(1000), chunk_texts=2):
            pass

    async with AsyncClient(server.target) as client:
        task = asyncio.create_task(iterate(client))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_closing_the_client_ends_a_waiting_iteration(client: Client, server: FakeServer) -> None:
    """A thread that waits for a chunk receives CallCancelledError when another thread closes the client."""
    gate = server.hold("Embed", after=1)
    chunks = client.embed_many(numbered(20), chunk_texts=10, window_chunks=1)
    found = [next(chunks)]
    closer = threading.Thread(target=lambda: (gate.wait_until_held(), client.close()))
    closer.start()
    with pytest.raises(CallCancelledError) as raised:
        found.extend(chunks)
    closer.join(30)
    assert raised.value.reason == "CLIENT_CLOSED"
    check_rows(found, numbered(10))
    join_threads()


async def test_closing_the_asyncio_client_ends_a_waiting_iteration(server: FakeServer) -> None:
    """A task that waits for a chunk receives CallCancelledError when another task closes the client."""
    gate = server.hold("Embed", after=1)
    client = AsyncClient(server.target)
    chunks = client.embed_many(numbered(20), chunk_texts=10, window_chunks=1)
    check_rows([await anext(chunks)], numbered(10))

    async def close() -> None:
        """Closes the client while the iteration waits."""
        await asyncio.to_thread(gate.wait_until_held)
        await client.close()

    closing = asyncio.create_task(close())
    with pytest.raises(CallCancelledError) as raised:
        await anext(chunks)
    await closing
    assert raised.value.reason == "CLIENT_CLOSED"


async def test_embed_many_of_a_closed_client_raises_at_once(client: Client, server: FakeServer) -> None:
    """A call after close raises before the source is read."""
    client.close()
    other = AsyncClient(server.target)
    await other.close()
    for closed in (client, other):
        with pytest.raises(FailedPreconditionError) as raised:
            closed.embed_many(["a"])
        assert raised.value.reason == "CLIENT_CLOSED"


async def test_embed_many_in_a_second_event_loop_is_refused(server: FakeServer) -> None:
    """An asyncio client belongs to the loop of its first call."""

    async def iterate(client: AsyncClient) -> None:
        """Iterates to the end."""
        async for _ in client.embed_many(["a"]):
            pass

    async with AsyncClient(server.target) as client:
        await iterate(client)
        with pytest.raises(FailedPreconditionError) as raised:
            await asyncio.to_thread(asyncio.run, iterate(client))
        assert raised.value.reason == "OTHER_EVENT_LOOP"


async def test_only_the_asyncio_client_reads_asynchronous_sources(server: FakeServer, client: Client) -> None:
    """The asyncio client reads an asynchronous source; the blocking one raises an error that names `texts`."""

    async def source() -> AsyncIterator[str]:
        """Yields texts."""
        for text in numbered(25):
            await asyncio.sleep(0)
            yield text

    async with AsyncClient(server.target) as other:
        check_rows([chunk async for chunk in other.embed_many(source(), chunk_texts=4)], numbered(25))
    with pytest.raises(InvalidArgumentError, match="texts"):
        client.embed_many(source())  # type: ignore[arg-type]
