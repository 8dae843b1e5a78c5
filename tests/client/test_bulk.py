"""embed_many of both clients: any number of texts in order, with requests that fail and are repeated."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from isogloss import AsyncClient, Client, UnavailableError
from isogloss._bulk import BulkTiming
from isogloss.client import _CallsInFlight
from isogloss.testing import FakeServer, Received
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import Found, Many, asynchronous, blocking, check_rows, check_whole, numbered
from tests.support.fake import SPACE, fake_server, messages, methods, received, set_limits


def sizes(found: Found) -> list[int]:
    """Returns the number of texts of each chunk."""
    return [len(chunk) for chunk in found[0]]


def test_chunks_are_yielded_in_the_order_of_the_texts(many: Many, server: FakeServer) -> None:
    """Responses out of order are yielded in order, each text with its own vector."""
    gate = server.hold("Embed", times=1)

    def open_gate(_received: Received) -> None:
        """Releases the first request when the whole window has arrived."""
        if len(received(server, "Embed")) == 4:
            gate.open()

    server.on_request = open_gate
    check_whole(many(numbered(80), chunk_texts=10, window_chunks=4), numbered(80))


def test_requests_carry_every_argument_and_a_timeout(many: Many, server: FakeServer) -> None:
    """Every request has all arguments, the priority BULK, and its own timeout."""
    arguments = {"model": "default", "input_type": "query", "truncation": "start", "space_id": SPACE}
    chunks, error = many(numbered(4), chunk_texts=2, dimensions=8, normalize=False, allow_partial=True, **arguments)
    assert error is None
    for request in messages(server, "Embed"):
        assert (request.priority, request.input_type, request.truncation) == (pb.PRIORITY_BULK, 2, pb.TRUNCATION_START)
        assert (request.model, request.dimensions, request.space_id) == ("default", 8, SPACE)
        assert request.allow_partial
        assert not request.normalize
    timeouts_s = [request.timeout_s or 0 for request in received(server, "Embed")]
    assert 0 < min(timeouts_s) <= max(timeouts_s) < 121  # of the second, which may share the server with the first
    assert chunks[0].embeddings.dimensions == 8


@pytest.mark.parametrize(("arguments", "sent"), [({}, 0), ({"truncation": "end"}, pb.TRUNCATION_END)])
def test_an_absent_truncation_stays_absent_in_requests(
    many: Many, server: FakeServer, arguments: dict[str, str], sent: int
) -> None:
    """A request has the truncation of the caller, or none."""
    _, error = many(numbered(4), chunk_texts=2, **arguments)
    assert error is None
    assert [request.truncation for request in messages(server, "Embed")] == [sent] * 2


@pytest.mark.parametrize("limits", [{"max_texts": 3}, {"max_response_bytes": 3 * 84}])
def test_chunks_keep_the_limits_of_texts_and_responses(many: Many, server: FakeServer, limits: dict[str, int]) -> None:
    """A chunk has no more texts than the limits of requests and responses allow, for any chunk_texts."""
    set_limits(server, **limits)
    found = many(numbered(10))
    check_whole(found, numbered(10))
    assert sizes(found) == [3, 3, 3, 1]


def test_chunks_keep_the_limit_of_request_bytes(many: Many, server: FakeServer) -> None:
    """A chunk has no more bytes of UTF-8 than the limit; a text of the whole limit is sent alone."""
    server.max_request_bytes = 8
    texts = ["aaaa", "bbbb", "é" * 3, "ccc", "dddddddd", "e"]
    found = many(iter(texts))
    check_whole(found, texts)
    assert sizes(found) == [2, 1, 1, 1, 1]


def test_reading_ahead_is_bounded_by_the_window(many: Many) -> None:
    """An endless source is read at most window_chunks chunks beyond the last one yielded."""
    read = 0

    def endless() -> Iterator[str]:
        """Counts the texts that are read."""
        nonlocal read
        for read in count(1):
            if read > 1000:
                return
            yield f"text {read}"

    ahead = []
    many(endless(), chunk_texts=5, window_chunks=3, each=lambda chunk: ahead.append(read - chunk.start - len(chunk)))
    assert len(ahead) == 200
    assert max(ahead) <= 3 * 5


def test_an_empty_source_sends_no_texts(many: Many, server: FakeServer) -> None:
    """An empty source yields nothing, and no text is sent."""
    assert many(iter(())) == ([], None)
    assert methods(server) == ["ListModels"]


def test_transient_refusals_are_sent_again(many: Many, server: FakeServer) -> None:
    """Requests refused with UNAVAILABLE or RESOURCE_EXHAUSTED, with a delay or not, are repeated until they succeed."""
    for code, delay_s, times in [("UNAVAILABLE", None, 2), ("RESOURCE_EXHAUSTED", 0.001, 3)]:
        server.fail_next("Embed", code=code, reason="", retry_after_s=delay_s, times=times)
    check_whole(many(numbered(40), chunk_texts=5), numbered(40))
    assert methods(server).count("Embed") == 8 + 5


def test_row_errors_count_from_the_start_of_the_chunk(many: Many, server: FakeServer) -> None:
    """With allow_partial a text that fails is a row error of its chunk."""
    chunks, error = many([*numbered(3), " "], chunk_texts=2, allow_partial=True)
    assert error is None
    assert [[row.row for row in chunk.embeddings.row_errors] for chunk in chunks] == [[], [1]]


def test_lost_calls_are_repeated_without_losing_vectors(many: Many, server: FakeServer) -> None:
    """Calls that end early for any transient reason lose, repeat and exchange no vectors."""
    ends = [(2, "UNAVAILABLE", ""), (0, "UNAVAILABLE", "DRAINING"), (0, "CANCELLED", "")]
    for after, code, reason in [*ends, (3, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"), (1, "INTERNAL", "")]:
        server.fail_next("Embed", code=code, reason=reason, after=after)
    check_whole(many(numbered(60), chunk_texts=3), numbered(60))
    assert methods(server).count("Embed") == 20 + 5


def test_requests_after_the_first_response_require_its_space(many: Many, server: FakeServer) -> None:
    """The server itself refuses later requests if its space has changed."""
    check_whole(many(numbered(30), chunk_texts=5, window_chunks=1), numbered(30))
    assert [request.space_id for request in messages(server, "Embed")] == ["", *[SPACE] * 5]


@pytest.mark.parametrize("client", [blocking, asynchronous])
def test_calls_are_balanced_over_all_addresses(client: Any) -> None:
    """Each call goes to the next server, so that all servers work for one embed_many."""
    with fake_server() as one, fake_server() as other:
        target = f"ipv4:{one.target},{other.target}"
        check_whole(client(target, numbered(400), chunk_texts=4), numbered(400))
        assert min(methods(server).count("Embed") for server in (one, other)) > 10


def test_an_exhausted_retry_budget_raises_unavailable_error(many: Many, server: FakeServer) -> None:
    """patience_s without a response raises UnavailableError, after the chunks that were answered."""
    server.fail_next("Embed", reason="", after=1, times=1000)
    moments = count(step=5)
    timing = BulkTiming(clock=lambda: next(moments), first_delay_s=0.001, max_delay_s=0.001)
    chunks, error = many(numbered(20), chunk_texts=10, window_chunks=1, timing=timing)
    assert isinstance(error, UnavailableError)
    assert "60 s" in error.message
    check_rows(chunks, numbered(10))


def test_an_unreachable_server_raises_unavailable_error() -> None:
    """Without a reachable server, the call raises UnavailableError after patience_s."""
    moments = count(step=20)
    timing = BulkTiming(clock=lambda: next(moments), first_delay_s=0.001, max_delay_s=0.001)
    for client in (blocking, asynchronous):
        chunks, error = client("127.0.0.1:1", ["a"], timing=timing)
        assert not chunks
        assert isinstance(error, UnavailableError)


def test_both_clients_yield_equal_chunks(server: FakeServer) -> None:
    """Starts, texts, vectors and spaces of the chunks are equal."""
    one, other = (client(server.target, numbered(25), chunk_texts=10)[0] for client in (blocking, asynchronous))
    assert [(c.start, c.texts) for c in one] == [(c.start, c.texts) for c in other]
    for mine, theirs in zip(one, other, strict=True):
        assert np.array_equal(mine.embeddings.vectors, theirs.embeddings.vectors)
        assert mine.embeddings.space_id == theirs.embeddings.space_id


def test_a_chunk_that_is_ready_is_yielded_between_two_texts(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocking client looks for responses between two texts of a slow source, not only between two chunks."""
    arrived, read = threading.Event(), 0
    add = _CallsInFlight.add

    def watched(calls: Any, chunk: Any, call: Any, running: Any) -> None:
        """Reports the end of a call, after it has been queued."""
        add(calls, chunk, call, running)
        call.add_done_callback(lambda _: arrived.set())

    monkeypatch.setattr(_CallsInFlight, "add", watched)

    def source() -> Iterator[str]:
        """Yields the first text of the second chunk after the response to the first chunk has arrived."""
        nonlocal read
        for read, text in enumerate(numbered(100), 1):
            assert read != 3 or arrived.wait(30)
            yield text

    with Client(server.target) as client:
        first = next(client.embed_many(source(), chunk_texts=2))
    assert (first.start, len(first)) == (0, 2)
    assert read <= 3


async def test_a_chunk_that_is_ready_is_yielded_while_the_source_waits(server: FakeServer) -> None:
    """The asyncio client yields a chunk whose texts are followed by a source that waits for exactly that."""
    yielded = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        """Yields half of the second chunk after the first one has been yielded."""
        for text in numbered(3):
            yield text
        await yielded.wait()
        yield "text 3"

    chunks = []
    async with AsyncClient(server.target) as client:
        async for chunk in client.embed_many(source(), chunk_texts=2):
            chunks.append(chunk)
            yielded.set()
    check_rows(chunks, numbered(4))


async def test_a_lost_call_is_repeated_while_the_source_waits(server: FakeServer) -> None:
    """A chunk whose call was lost is sent again, and yielded, before the source has another text."""
    server.fail_next("Embed")
    yielded = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        """Waits after the first chunk until it has been yielded."""
        yield "text 0"
        await yielded.wait()
        yield "text 1"

    chunks = []
    async with AsyncClient(server.target) as client:
        async for chunk in client.embed_many(source(), chunk_texts=1):
            chunks.append(chunk)
            yielded.set()
    check_rows(chunks, numbered(2))


async def test_an_error_of_an_asynchronous_source_is_raised_after_the_chunks_before_it(server: FakeServer) -> None:
    """The error of the source reaches the caller as it is."""
    error = RuntimeError("the file is gone")

    async def source() -> AsyncIterator[str]:
        """Yields texts, then raises."""
        for text in numbered(3):
            yield text
        raise error

    async with AsyncClient(server.target) as client:
        stream = client.embed_many(source(), chunk_texts=2)
        chunks = [await anext(stream), await anext(stream)]
        with pytest.raises(RuntimeError) as raised:
            await anext(stream)
    assert raised.value is error
    check_rows(chunks, numbered(3))
