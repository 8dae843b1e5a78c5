"""embed_many of both clients: what goes wrong, and where it is said to have gone wrong."""

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


def test_a_wrong_text_is_named_by_its_row_in_the_whole(many: Many, scripted: Running) -> None:
    """A request that fails for good raises after the chunks before it, with the rows of the whole."""
    scripted.script.bad_texts = {"text 37"}
    chunks, error = many(numbered(100), chunk_texts=10)
    assert isinstance(error, InvalidArgumentError)
    assert [violation.field for violation in error.violations] == ["texts[37]"]
    assert (error.reason, error.metadata["index"]) == ("EMPTY_TEXT", "37")
    check_rows(chunks, numbered(30))


def test_what_cannot_be_sent_is_named_by_its_row_as_well(many: Many) -> None:
    """A text that is no str is found here, and raised after the texts before it."""
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
def test_a_judgement_of_the_service_is_final(many: Many, scripted: Running, fault: Fault, kind: type) -> None:
    """A stream that the service itself ends for a reason is not opened again."""
    scripted.script.streams = [ends_after(1, fault)]
    # One at a time, for grpc.aio hides a status that comes while it writes; such a stream is opened again to learn it.
    chunks, error = many(numbered(40), chunk_texts=10, window_chunks=1)
    assert type(error) is kind
    check_rows(chunks, numbered(10))
    assert scripted.script.methods().count("EmbedStream") == 1


def test_a_server_without_streams_says_so(many: Many, scripted: Running) -> None:
    """UNIMPLEMENTED names what is missing."""
    scripted.script.streams = [ends_after(0, Fault(grpc.StatusCode.UNIMPLEMENTED))]
    _, error = many(["a"])
    assert isinstance(error, UnimplementedError)
    assert "EmbedStream" in error.message


@pytest.mark.parametrize("window_chunks", [1, 8])
def test_two_spaces_are_never_mixed(many: Many, scripted: Running, window_chunks: int) -> None:
    """A server that changes the model is refused, by itself where it was told the space in time, else here."""
    scripted.script.spaces = [SPACE, SPACE, "space-2", "space-2"]
    chunks, error = many(numbered(20), chunk_texts=5, window_chunks=window_chunks)
    assert isinstance(error, SpaceMismatchError)
    assert error.reason == "SPACE_MISMATCH"
    check_rows(chunks, numbered(10))


def test_limits_that_shrink_meanwhile_are_kept(many: Many, scripted: Running) -> None:
    """A server that was restarted with smaller limits gets smaller requests."""

    def shrink(requests: Iterator[Any], answer: Callable[[Any], Any], _context: Any) -> Iterator[Any]:
        """Takes fewer texts than were announced."""
        scripted.script.limits["max_texts"] = 3
        return map(answer, requests)

    scripted.script.streams = [shrink]
    found = many(numbered(100), chunk_texts=10)
    check_whole(found, numbered(100))
    assert max(map(len, found[0])) <= 3


def test_an_answer_that_makes_no_sense_is_an_error(many: Many, scripted: Running) -> None:
    """Answers for others than were asked are left alone, and one with too few rows is refused."""

    def confused(requests: Iterator[Any], answer: Callable[[Any], Any], _context: Any) -> Iterator[Any]:
        """Answers something else first, twice, and then too little."""
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
def test_what_the_source_raises_ends_the_stream(many: Many, scripted: Running, error: BaseException) -> None:
    """An exception of the source is raised after the vectors of what it gave, Ctrl-C at once; the stream ends."""
    gone = threading.Event()

    def watched(requests: Iterator[Any], answer: Callable[[Any], Any], context: Any) -> Iterator[Any]:
        """Tells when the stream has ended."""
        context.add_callback(gone.set)
        return map(answer, requests)

    def source() -> Iterator[str]:
        """Gives some texts."""
        yield from numbered(8)
        raise error

    scripted.script.streams = [watched]
    chunks, found = many(source(), chunk_texts=3, window_chunks=2)  # the last texts are read after the first answer
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
def test_wrong_arguments_are_named(many: Many, scripted: Running, wrong: dict[str, Any]) -> None:
    """An argument that is wrong whatever a server says is refused before anything is sent."""
    _, error = many(**{"texts": ["a"], **wrong})
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field == next(iter(wrong))
    assert not scripted.script.calls
