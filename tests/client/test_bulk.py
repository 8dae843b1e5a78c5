"""embed_many of both clients: any number of texts in order, with streams that fail and are replaced."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from isogloss import AsyncClient, Client, UnavailableError
from isogloss._bulk import BulkTiming
from isogloss.client import _forward
from isogloss.testing import FakeServer, Received
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import Found, Many, asynchronous, blocking, check_rows, check_whole, numbered
from tests.support.fake import SPACE, messages, methods, received, set_limits
from tests.support.lying_server import embed_response, lying_server


def sizes(found: Found) -> list[int]:
    """Returns the number of texts of each chunk."""
    return [len(chunk) for chunk in found[0]]


def test_chunks_are_yielded_in_the_order_of_the_texts(many: Many, server: FakeServer) -> None:
    """Responses out of order are yielded in order, each text with its own vector."""
    gate = server.hold("Embed", times=1)

    def open_gate(_received: Received) -> None:
        """Releases the first request when the whole window has arrived."""
        if len(received(server, "EmbedStream")) == 4:
            gate.open()

    server.on_request = open_gate
    check_whole(many(numbered(80), chunk_texts=10, window_chunks=4), numbered(80))
    assert server.streams == 1


def test_requests_carry_every_argument_and_a_timeout(many: Many, server: FakeServer) -> None:
    """Every request has all arguments, the priority BULK, and its own timeout."""
    arguments = {"model": "default", "input_type": "query", "truncation": "start", "space_id": SPACE}
    chunks, error = many(numbered(4), chunk_texts=2, dimensions=8, normalize=False, allow_partial=True, **arguments)
    assert error is None
    for message in messages(server, "EmbedStream"):
        request = message.request
        assert (request.priority, request.input_type, request.truncation) == (pb.PRIORITY_BULK, 2, pb.TRUNCATION_START)
        assert (request.model, request.dimensions, request.space_id) == ("default", 8, SPACE)
        assert request.allow_partial
        assert not request.normalize
        assert message.timeout.ToSeconds() in (60, 120)  # the second waits for the first
    assert chunks[0].embeddings.dimensions == 8


@pytest.mark.parametrize(("arguments", "sent"), [({}, 0), ({"truncation": "end"}, pb.TRUNCATION_END)])
def test_an_absent_truncation_stays_absent_in_requests(
    many: Many, server: FakeServer, arguments: dict[str, str], sent: int
) -> None:
    """A request has the truncation of the caller, or none."""
    _, error = many(numbered(4), chunk_texts=2, **arguments)
    assert error is None
    assert [message.request.truncation for message in messages(server, "EmbedStream")] == [sent] * 2


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


def test_an_empty_source_opens_no_stream(many: Many, server: FakeServer) -> None:
    """An empty source yields nothing, and opens no stream."""
    assert many(iter(())) == ([], None)
    assert methods(server) == ["ListModels"]


def test_transient_refusals_are_sent_again(many: Many, server: FakeServer) -> None:
    """Requests refused with UNAVAILABLE or RESOURCE_EXHAUSTED, with a delay or not, are repeated until they succeed."""
    for code, delay_s, times in [("UNAVAILABLE", None, 2), ("RESOURCE_EXHAUSTED", 0.001, 3)]:
        server.fail_next("Embed", code=code, reason="", retry_after_s=delay_s, times=times)
    check_whole(many(numbered(40), chunk_texts=5), numbered(40))
    assert server.streams == 1
    assert methods(server).count("EmbedStream") == 8 + 5


def test_row_errors_count_from_the_start_of_the_chunk(many: Many, server: FakeServer) -> None:
    """With allow_partial a text that fails is a row error of its chunk."""
    chunks, error = many([*numbered(3), " "], chunk_texts=2, allow_partial=True)
    assert error is None
    assert [[row.row for row in chunk.embeddings.row_errors] for chunk in chunks] == [[], [1]]


def test_a_stream_that_ends_is_replaced_without_losing_vectors(many: Many, server: FakeServer) -> None:
    """Streams that end early for any reason lose, repeat and exchange no vectors."""
    ends = [(2, "UNAVAILABLE", ""), (0, "UNAVAILABLE", "DRAINING"), (0, "CANCELLED", "")]
    for after, code, reason in [*ends, (3, "UNAVAILABLE", "DRAINING"), (1, "INTERNAL", "")]:
        server.fail_next("EmbedStream", code=code, reason=reason, after=after)
    check_whole(many(numbered(60), chunk_texts=3), numbered(60))
    assert server.streams == 6


@pytest.mark.parametrize("client", [blocking, asynchronous])
def test_a_stream_that_ends_with_ok_too_early_is_replaced(client: Any) -> None:
    """Requests that a stream ended without answering are sent again on another stream."""
    streams = []

    def embed_stream(requests: Iterator[Any], _context: Any) -> Iterator[Any]:
        """Answers two requests, and ends with OK although more are sent."""
        streams.append(requests)
        for message in islice(requests, 2):
            yield pb.EmbedStreamResponse(id=message.id, response=embed_response(message.request.texts))

    with lying_server(EmbedStream=embed_stream) as target:
        check_whole(client(target, numbered(12), chunk_texts=3), numbered(12))
    assert len(streams) >= 2


def test_old_streams_are_replaced(many: Many, server: FakeServer) -> None:
    """A stream beyond its maximum age is half-closed and replaced; vectors are neither lost nor repeated."""
    found = many(numbered(60), chunk_texts=3, window_chunks=4, timing=BulkTiming(max_stream_age_s=0.0))
    check_whole(found, numbered(60))
    assert server.streams > 5
    assert methods(server).count("EmbedStream") == 20


def test_an_exhausted_retry_budget_raises_unavailable_error(many: Many, server: FakeServer) -> None:
    """patience_s without a response raises UnavailableError, after the chunks that were answered."""
    server.fail_next("EmbedStream", reason="", after=1, times=1000)
    moments = count(step=5)
    timing = BulkTiming(clock=lambda: next(moments), first_delay_s=0.001, max_delay_s=0.001)
    chunks, error = many(numbered(20), chunk_texts=10, timing=timing)
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

    def forward(call: Any, inbox: Any, *others: Any) -> None:
        """Reports the arrival of the first message."""
        inbox.put(next(call))
        arrived.set()
        _forward(call, inbox, *others)

    monkeypatch.setattr("isogloss.client._forward", forward)

    def source() -> Iterator[str]:
        """Yields the first text of the second chunk after the response to the first chunk has arrived."""
        nonlocal read
        for read, text in enumerate(numbered(100), 1):
            assert read != 3 or arrived.wait(30)
            yield text

    with Client(server.target) as client:
        first = next(client.embed_many(source(), chunk_texts=2))
    assert (first.start, len(first), read) == (0, 2, 3)


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


async def test_a_lost_stream_is_replaced_while_the_source_waits(server: FakeServer) -> None:
    """The chunks of a stream that ended are sent again, and yielded, before the source has another text."""
    server.fail_next("EmbedStream")
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
    assert server.streams == 2


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
