"""embed_many ended early, by the caller or by closing the client, leaves no stream, thread or task."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from isogloss import AsyncClient, CallCancelledError, Client, FailedPreconditionError, InvalidArgumentError
from isogloss.client import THREAD_NAME
from isogloss.testing import FakeServer
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.support.bulk import check_rows, numbered

LEFT = """
from isogloss import Client
client = Client('{address}')
chunks = client.embed_many((str(number) for number in range(10**6)), chunk_texts=10)
next(chunks)
"""


def join_threads() -> None:
    """Waits for the end of all threads of streams; grpc's threads are named after their function."""
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME or "consume_request_iterator" in thread.name:
            thread.join(30)
            assert not thread.is_alive()


class Generator(grpc.StreamStreamClientInterceptor):
    """Returns a generator in place of a call, as old versions of opentelemetry-instrumentation-grpc do."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Iterator[Any]:
        """Yields the responses of the call, or raises."""
        if self._failure is not None:
            raise self._failure
        yield from continuation(details, requests)


def intercepted(client: Client, interceptor: Any) -> Client:
    """Returns `client` with an interceptor on its channel."""
    client._stub = EmbeddingServiceStub(grpc.intercept_channel(client._channel, interceptor))
    return client


def test_an_interceptor_may_return_a_generator_in_place_of_a_call(client: Client, server: FakeServer) -> None:
    """embed_many yields all chunks, resumes after a lost stream, and leaves no thread."""
    server.fail_next("EmbedStream", code="UNAVAILABLE", reason="", after=1)
    with intercepted(client, Generator()) as used:
        check_rows(list(used.embed_many(numbered(20), chunk_texts=5)), numbered(20))
        join_threads()


def test_leaving_an_intercepted_stream_early_ends_it(client: Client, server: FakeServer) -> None:
    """A stream that cannot be cancelled ends after the responses to the requests that were sent."""
    chunks = intercepted(client, Generator()).embed_many(numbered(100), chunk_texts=5, window_chunks=2)
    next(chunks)
    chunks.close()
    server.wait_until_idle()
    join_threads()


def test_an_error_of_an_interceptor_is_raised(client: Client) -> None:
    """An exception that is not an RpcError ends embed_many instead of leaving it waiting."""
    failure = RuntimeError("of the interceptor")
    with pytest.raises(RuntimeError) as raised:
        list(intercepted(client, Generator(failure)).embed_many(["a"]))
    assert raised.value is failure
    join_threads()


@pytest.mark.parametrize("leave", ["break", "close", "forget"])
def test_leaving_the_iterator_early_cancels_the_stream(client: Client, server: FakeServer, leave: str) -> None:
    """Breaking out, closing the iterator and dropping it each cancel the stream; no thread remains."""
    gate = server.hold("Embed", after=1)
    chunks = client.embed_many(numbered(100), chunk_texts=5)
    if leave == "break":
        for _ in chunks:
            break
        del _
    else:
        next(chunks)
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
    """Closing the asynchronous iterator cancels the stream; no task remains."""
    server.hold("Embed", after=1)
    async with AsyncClient(server.target) as client:
        async with aclosing(client.embed_many(numbered(100), chunk_texts=5)) as chunks:
            async for _ in chunks:
                break
        await asyncio.to_thread(server.wait_until_idle)
        await client.health()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "isogloss" in repr(task)]


async def test_cancelling_the_task_cancels_the_stream(server: FakeServer) -> None:
    """asyncio.CancelledError is raised unchanged, and the stream ends."""
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
    chunks = client.embed_many(numbered(20), chunk_texts=10)
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
    chunks = client.embed_many(numbered(20), chunk_texts=10)
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
