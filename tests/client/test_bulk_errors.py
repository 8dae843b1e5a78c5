"""embed_many of both clients: errors, the rows they name, and the chunks yielded before them."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from isogloss import (
    InternalError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SpaceMismatchError,
    UnimplementedError,
)
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import Many, check_rows, check_whole, numbered
from tests.support.scripted_faults import Fault, refusal
from tests.support.scripted_server import SPACE, Running
from tests.support.scripted_stream import ends_after


def test_an_invalid_text_is_named_by_its_row_among_all_texts(many: Many, scripted: Running) -> None:
    """A final error is raised after the chunks before it, with the row among all texts."""
    scripted.script.bad_texts = {"text 37"}
    chunks, error = many(numbered(100), chunk_texts=10)
    assert isinstance(error, InvalidArgumentError)
    assert [violation.field for violation in error.violations] == ["texts[37]"]
    assert (error.reason, error.metadata["index"]) == ("EMPTY_TEXT", "37")
    check_rows(chunks, numbered(30))


def test_an_item_that_is_not_a_str_is_named_by_its_row(many: Many) -> None:
    """An item that is not a str raises after the chunks before it, with the row among all texts."""
    chunks, error = many([*numbered(7), None], chunk_texts=2)
    assert isinstance(error, InvalidArgumentError)
    assert (error.reason, error.violations[0].field) == ("BAD_TEXT", "texts[7]")
    check_rows(chunks, numbered(7))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (refusal("NO_ACCESS", code=grpc.StatusCode.PERMISSION_DENIED), PermissionDeniedError),
        (refusal("DUPLICATE_ID", code=grpc.StatusCode.INVALID_ARGUMENT), InvalidArgumentError),
        (refusal("FAULT", code=grpc.StatusCode.INTERNAL), InternalError),
        (
            Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[("grpc-retry-pushback-ms", "-1")]),
            ResourceExhaustedError,
        ),
    ],
)
def test_final_errors_of_the_service_are_not_retried(many: Many, scripted: Running, fault: Fault, kind: type) -> None:
    """A stream that the service ends with a reason of its own is not opened again."""
    scripted.script.streams = [ends_after(1, fault)]
    # One request at a time: grpc.aio hides a status that arrives during a write, and then the stream is opened again.
    chunks, error = many(numbered(40), chunk_texts=10, window_chunks=1)
    assert type(error) is kind
    check_rows(chunks, numbered(10))
    assert scripted.script.methods().count("EmbedStream") == 1


def test_a_server_without_embed_stream_raises_unimplemented(many: Many, scripted: Running) -> None:
    """The UnimplementedError names EmbedStream."""
    scripted.script.streams = [ends_after(0, Fault(grpc.StatusCode.UNIMPLEMENTED))]
    _, error = many(["a"])
    assert isinstance(error, UnimplementedError)
    assert "EmbedStream" in error.message


@pytest.mark.parametrize("window_chunks", [1, 8])
def test_vectors_of_two_spaces_are_refused(many: Many, scripted: Running, window_chunks: int) -> None:
    """If the model changes, the server refuses requests with the old space_id, and the client the other responses."""
    scripted.script.spaces = [SPACE, SPACE, "space-2", "space-2"]
    chunks, error = many(numbered(20), chunk_texts=5, window_chunks=window_chunks)
    assert isinstance(error, SpaceMismatchError)
    assert error.reason == "SPACE_MISMATCH"
    check_rows(chunks, numbered(10))


def test_limits_that_shrink_during_the_call_are_kept(many: Many, scripted: Running) -> None:
    """A server restarted with smaller limits receives smaller requests."""

    def shrink(requests: Iterator[Any], answer: Callable[[Any], Any], _context: Any) -> Iterator[Any]:
        """Accepts fewer texts than the limits that were reported."""
        scripted.script.limits["max_texts"] = 3
        return map(answer, requests)

    scripted.script.streams = [shrink]
    found = many(numbered(100), chunk_texts=10)
    check_whole(found, numbered(100))
    assert max(map(len, found[0])) <= 3


def test_unexpected_responses_are_ignored_and_invalid_ones_raise(many: Many, scripted: Running) -> None:
    """Responses for unknown requests are ignored; one with too few rows raises InternalError."""

    def confused(requests: Iterator[Any], answer: Callable[[Any], Any], _context: Any) -> Iterator[Any]:
        """Sends a response for an unknown request, one response twice, and one without rows."""
        first = answer(next(requests))
        yield pb.EmbedStreamResponse(id=999, response=first.response)
        yield first
        yield first
        next(requests)
        yield pb.EmbedStreamResponse(id=2, response=pb.EmbedResponse())
        next(requests, None)

    scripted.script.streams = [confused]
    chunks, error = many(numbered(4), chunk_texts=2)
    assert isinstance(error, InternalError)
    assert error.reason == "BAD_ANSWER"
    check_rows(chunks, numbered(2))


@pytest.mark.parametrize("error", [RuntimeError("the file is gone"), KeyboardInterrupt()])
def test_an_error_of_the_source_ends_the_stream(many: Many, scripted: Running, error: BaseException) -> None:
    """The error is raised after the vectors of the texts before it, KeyboardInterrupt at once; the stream ends."""
    gone = threading.Event()

    def watched(requests: Iterator[Any], answer: Callable[[Any], Any], context: Any) -> Iterator[Any]:
        """Sets `gone` when the stream has ended."""
        context.add_callback(gone.set)
        return map(answer, requests)

    def source() -> Iterator[str]:
        """Yields texts, then raises."""
        yield from numbered(8)
        raise error

    scripted.script.streams = [watched]
    chunks, found = many(source(), chunk_texts=3, window_chunks=2)  # the last texts are read after the first response
    assert found is error
    if isinstance(error, Exception):
        check_rows(chunks, numbered(8))
    assert gone.wait(30)


@pytest.mark.parametrize(
    "wrong",
    [
        {"texts": "one text"},
        {"texts": 5},
        {"chunk_texts": 0},
        {"window_chunks": 0},
        {"patience_s": 0},
        {"patience_s": float("inf")},
        {"input_type": "nonsense"},
    ],
)
def test_invalid_arguments_are_named_before_a_request_is_sent(
    many: Many, scripted: Running, wrong: dict[str, Any]
) -> None:
    """The error names the argument, and no request is sent."""
    _, error = many(**{"texts": ["a"], **wrong})
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field == next(iter(wrong))
    assert not scripted.script.calls
