"""embed_many of both clients: any number of texts, in order, whatever becomes of the stream."""

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
    """How many texts each chunk has."""
    return [len(chunk) for chunk in found[0]]


def test_chunks_are_yielded_in_order(many: Many, scripted: Running) -> None:
    """Answers that come out of order are given out in order, each text with its own vector."""
    scripted.script.streams = [pairs_swapped]
    check_whole(many(numbered(80), chunk_texts=10, window_chunks=4), numbered(80))
    assert scripted.script.methods().count("EmbedStream") == 1


def test_requests_say_what_was_asked(many: Many, scripted: Running) -> None:
    """Every argument arrives in each request, in the lane of bulk work, with a timeout of its own."""
    arguments = {"model": "default", "input_type": "query", "truncation": "start", "space_id": SPACE}
    chunks, error = many(numbered(4), chunk_texts=2, dimensions=8, normalize=False, allow_partial=True, **arguments)
    assert error is None
    for call in (call for call in scripted.script.calls if call.method == "Embed"):
        asked = call.request
        assert (asked.priority, asked.input_type, asked.truncation) == (pb.PRIORITY_BULK, 2, pb.TRUNCATION_START)
        assert (asked.model, asked.dimensions, asked.space_id) == ("default", 8, SPACE)
        assert asked.allow_partial
        assert not asked.normalize
        assert call.time_remaining in (60, 120)  # the second waits for the first
    assert chunks[0].embeddings.dimensions == 8


@pytest.mark.parametrize(("said", "sent"), [({}, 0), ({"truncation": "end"}, pb.TRUNCATION_END)])
def test_a_truncation_left_unsaid_is_left_to_the_server(
    many: Many, scripted: Running, said: dict[str, str], sent: int
) -> None:
    """A request says of texts too long what the caller said, or nothing."""
    _, error = many(numbered(4), chunk_texts=2, **said)
    assert error is None
    assert [request.truncation for request in scripted.script.requests("Embed")] == [sent] * 2


@pytest.mark.parametrize("limits", [{"max_texts": 3}, {"max_response_bytes": 3 * 84}])
def test_chunks_keep_the_servers_limit_of_texts(many: Many, scripted: Running, limits: dict[str, int]) -> None:
    """A chunk has no more texts than the server takes, or can answer, whatever was asked for."""
    scripted.script.limits.update(limits)
    found = many(numbered(10))
    check_whole(found, numbered(10))
    assert sizes(found) == [3, 3, 3, 1]


def test_chunks_keep_the_servers_limit_of_bytes(many: Many, scripted: Running) -> None:
    """A chunk has no more bytes of UTF-8 than the server takes, and a text that fits alone goes alone."""
    scripted.script.limits["max_request_bytes"] = 8
    texts = ["aaaa", "bbbb", "é" * 3, "ccc", "dddddddd", "e"]
    found = many(iter(texts))
    check_whole(found, texts)
    assert sizes(found) == [2, 1, 1, 1, 1]


def test_the_source_is_not_read_ahead_beyond_the_window(many: Many) -> None:
    """An endless source is read no further than window_chunks chunks beyond the one in hand."""
    read = 0

    def endless() -> Iterator[str]:
        """Counts what is taken."""
        nonlocal read
        for read in count(1):
            if read > 1000:
                return
            yield f"text {read}"

    ahead = []
    many(endless(), chunk_texts=5, window_chunks=3, each=lambda chunk: ahead.append(read - chunk.start - len(chunk)))
    assert len(ahead) == 200
    assert max(ahead) <= 3 * 5


def test_no_texts_are_no_chunks(many: Many, scripted: Running) -> None:
    """An empty source yields nothing, and opens no stream."""
    assert many(iter(())) == ([], None)
    assert scripted.script.methods() == ["ListModels"]


def test_a_request_that_is_put_off_is_sent_again(many: Many, scripted: Running) -> None:
    """UNAVAILABLE and RESOURCE_EXHAUSTED for one request, with a delay or without, cost nobody a vector."""
    wait = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000))
    overload = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=[wait])
    scripted.script.faults = [UNAVAILABLE, overload, UNAVAILABLE, overload, overload]
    check_whole(many(numbered(40), chunk_texts=5), numbered(40))
    assert scripted.script.methods().count("EmbedStream") == 1
    assert scripted.script.methods().count("Embed") == 8 + 5


def test_rows_of_partial_answers_are_those_of_the_chunk(many: Many, scripted: Running) -> None:
    """With allow_partial a text that fails is a row error of its chunk."""
    scripted.script.bad_texts = {"text 3"}
    chunks, error = many(numbered(4), chunk_texts=2, allow_partial=True)
    assert error is None
    assert [[row.row for row in chunk.embeddings.row_errors] for chunk in chunks] == [[], [1]]


def test_a_stream_that_ends_is_replaced(many: Many, scripted: Running) -> None:
    """Whatever ends streams on the way, with answers before or without, no vector is lost, twice or another's."""
    cancelled, internal = Fault(grpc.StatusCode.CANCELLED), Fault(grpc.StatusCode.INTERNAL)
    scripted.script.streams = [
        ends_after(answers, fault)
        for answers, fault in [(2, UNAVAILABLE), (0, DRAINING), (0, cancelled), (3, DRAINING), (1, internal)]
    ]
    scripted.script.streams.append(lambda requests, answer, _context: islice(map(answer, requests), 2))  # ends with OK
    check_whole(many(numbered(60), chunk_texts=3), numbered(60))
    assert scripted.script.methods().count("EmbedStream") == 7


def test_a_stream_is_not_kept_for_ever(many: Many, scripted: Running) -> None:
    """A stream that is old is half-closed and replaced, and no vector is lost or twice."""
    found = many(numbered(60), chunk_texts=3, window_chunks=4, timing=BulkTiming(max_stream_age_s=0.0))
    check_whole(found, numbered(60))
    assert scripted.script.methods().count("EmbedStream") > 5
    assert scripted.script.methods().count("Embed") == 20


def test_a_server_that_stays_away_ends_the_work(many: Many, scripted: Running) -> None:
    """Patience without any answer ends in UnavailableError, after the chunks that were answered."""
    scripted.script.streams = [ends_after(1, UNAVAILABLE), *[ends_after(0, UNAVAILABLE)] * 1000]
    moments = count(step=5)
    timing = BulkTiming(clock=lambda: next(moments), first_delay_s=0.001, max_delay_s=0.001)
    chunks, error = many(numbered(20), chunk_texts=10, timing=timing)
    assert isinstance(error, UnavailableError)
    assert "60 s" in error.message
    check_rows(chunks, numbered(10))


def test_nobody_listens() -> None:
    """Where no server can be reached, patience ends in UnavailableError."""
    moments = count(step=20)
    timing = BulkTiming(clock=lambda: next(moments), first_delay_s=0.001, max_delay_s=0.001)
    for client in (blocking, asynchronous):
        chunks, error = client("127.0.0.1:1", ["a"], timing=timing)
        assert not chunks
        assert isinstance(error, UnavailableError)


def test_both_clients_yield_the_same(scripted: Running) -> None:
    """Chunks, vectors and what comes with them are equal."""
    one, other = (client(scripted.address, numbered(25), chunk_texts=10)[0] for client in (blocking, asynchronous))
    assert [(c.start, c.texts) for c in one] == [(c.start, c.texts) for c in other]
    for mine, theirs in zip(one, other, strict=True):
        assert np.array_equal(mine.embeddings.vectors, theirs.embeddings.vectors)
        assert mine.embeddings.space_id == theirs.embeddings.space_id
