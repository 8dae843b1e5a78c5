"""embed_many of both clients: any number of texts in order, with streams that fail and are replaced."""

from collections.abc import Iterator
from itertools import count, islice

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from isogloss import (
    UnavailableError,
)
from isogloss._bulk import BulkTiming
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import Found, Many, asynchronous, blocking, check_rows, check_whole, numbered
from tests.support.scripted_faults import Fault, refusal
from tests.support.scripted_server import SPACE, Running
from tests.support.scripted_stream import ends_after, pairs_swapped

UNAVAILABLE = Fault(grpc.StatusCode.UNAVAILABLE)
DRAINING = refusal("DRAINING", code=grpc.StatusCode.UNAVAILABLE)


def sizes(found: Found) -> list[int]:
    """Returns the number of texts of each chunk."""
    return [len(chunk) for chunk in found[0]]


def test_chunks_are_yielded_in_the_order_of_the_texts(many: Many, scripted: Running) -> None:
    """Responses out of order are yielded in order, each text with its own vector."""
    scripted.script.streams = [pairs_swapped]
    check_whole(many(numbered(80), chunk_texts=10, window_chunks=4), numbered(80))
    assert scripted.script.methods().count("EmbedStream") == 1


def test_requests_carry_every_argument_and_a_timeout(many: Many, scripted: Running) -> None:
    """Every request has all arguments, the priority BULK, and its own timeout."""
    arguments = {"model": "default", "input_type": "query", "truncation": "start", "space_id": SPACE}
    chunks, error = many(numbered(4), chunk_texts=2, dimensions=8, normalize=False, allow_partial=True, **arguments)
    assert error is None
    for call in (call for call in scripted.script.calls if call.method == "Embed"):
        request = call.request
        assert (request.priority, request.input_type, request.truncation) == (pb.PRIORITY_BULK, 2, pb.TRUNCATION_START)
        assert (request.model, request.dimensions, request.space_id) == ("default", 8, SPACE)
        assert request.allow_partial
        assert not request.normalize
        assert call.time_remaining in (60, 120)  # the second waits for the first
    assert chunks[0].embeddings.dimensions == 8


@pytest.mark.parametrize(("arguments", "sent"), [({}, 0), ({"truncation": "end"}, pb.TRUNCATION_END)])
def test_an_absent_truncation_stays_absent_in_requests(
    many: Many, scripted: Running, arguments: dict[str, str], sent: int
) -> None:
    """A request has the truncation of the caller, or none."""
    _, error = many(numbered(4), chunk_texts=2, **arguments)
    assert error is None
    assert [request.truncation for request in scripted.script.requests("Embed")] == [sent] * 2


@pytest.mark.parametrize("limits", [{"max_texts": 3}, {"max_response_bytes": 3 * 84}])
def test_chunks_keep_the_limits_of_texts_and_responses(many: Many, scripted: Running, limits: dict[str, int]) -> None:
    """A chunk has no more texts than the limits of requests and responses allow, for any chunk_texts."""
    scripted.script.limits.update(limits)
    found = many(numbered(10))
    check_whole(found, numbered(10))
    assert sizes(found) == [3, 3, 3, 1]


def test_chunks_keep_the_limit_of_request_bytes(many: Many, scripted: Running) -> None:
    """A chunk has no more bytes of UTF-8 than the limit; a text of the whole limit is sent alone."""
    scripted.script.limits["max_request_bytes"] = 8
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


def test_an_empty_source_opens_no_stream(many: Many, scripted: Running) -> None:
    """An empty source yields nothing, and opens no stream."""
    assert many(iter(())) == ([], None)
    assert scripted.script.methods() == ["ListModels"]


def test_transient_refusals_are_sent_again(many: Many, scripted: Running) -> None:
    """Requests refused with UNAVAILABLE or RESOURCE_EXHAUSTED, with a delay or not, are repeated until they succeed."""
    wait = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000))
    overload = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=[wait])
    scripted.script.faults = [UNAVAILABLE, overload, UNAVAILABLE, overload, overload]
    check_whole(many(numbered(40), chunk_texts=5), numbered(40))
    assert scripted.script.methods().count("EmbedStream") == 1
    assert scripted.script.methods().count("Embed") == 8 + 5


def test_row_errors_count_from_the_start_of_the_chunk(many: Many, scripted: Running) -> None:
    """With allow_partial a text that fails is a row error of its chunk."""
    scripted.script.bad_texts = {"text 3"}
    chunks, error = many(numbered(4), chunk_texts=2, allow_partial=True)
    assert error is None
    assert [[row.row for row in chunk.embeddings.row_errors] for chunk in chunks] == [[], [1]]


def test_a_stream_that_ends_is_replaced_without_losing_vectors(many: Many, scripted: Running) -> None:
    """Streams that end early for any reason lose, repeat and exchange no vectors."""
    cancelled, internal = Fault(grpc.StatusCode.CANCELLED), Fault(grpc.StatusCode.INTERNAL)
    scripted.script.streams = [
        ends_after(answers, fault)
        for answers, fault in [(2, UNAVAILABLE), (0, DRAINING), (0, cancelled), (3, DRAINING), (1, internal)]
    ]
    scripted.script.streams.append(lambda requests, answer, _context: islice(map(answer, requests), 2))  # ends with OK
    check_whole(many(numbered(60), chunk_texts=3), numbered(60))
    assert scripted.script.methods().count("EmbedStream") == 7


def test_old_streams_are_replaced(many: Many, scripted: Running) -> None:
    """A stream beyond its maximum age is half-closed and replaced; vectors are neither lost nor repeated."""
    found = many(numbered(60), chunk_texts=3, window_chunks=4, timing=BulkTiming(max_stream_age_s=0.0))
    check_whole(found, numbered(60))
    assert scripted.script.methods().count("EmbedStream") > 5
    assert scripted.script.methods().count("Embed") == 20


def test_an_exhausted_retry_budget_raises_unavailable_error(many: Many, scripted: Running) -> None:
    """patience_s without a response raises UnavailableError, after the chunks that were answered."""
    scripted.script.streams = [ends_after(1, UNAVAILABLE), *[ends_after(0, UNAVAILABLE)] * 1000]
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


def test_both_clients_yield_equal_chunks(scripted: Running) -> None:
    """Starts, texts, vectors and spaces of the chunks are equal."""
    one, other = (client(scripted.address, numbered(25), chunk_texts=10)[0] for client in (blocking, asynchronous))
    assert [(c.start, c.texts) for c in one] == [(c.start, c.texts) for c in other]
    for mine, theirs in zip(one, other, strict=True):
        assert np.array_equal(mine.embeddings.vectors, theirs.embeddings.vectors)
        assert mine.embeddings.space_id == theirs.embeddings.space_id
