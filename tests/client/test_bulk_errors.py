"""embed_many of both clients: errors, the rows they name, and the chunks yielded before them."""

from collections.abc import Iterator
from typing import Any

import pytest
from isogloss import (
    InternalError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SpaceMismatchError,
    UnimplementedError,
)
from isogloss.testing import FakeServer, Received

from tests.support.bulk import Many, check_rows, check_whole, numbered
from tests.support.fake import methods, received


def test_an_invalid_text_is_named_by_its_row_among_all_texts(many: Many, server: FakeServer) -> None:
    """A final error is raised after the chunks before it, with the row among all texts."""
    texts = [" " if row == 37 else text for row, text in enumerate(numbered(100))]
    chunks, error = many(texts, chunk_texts=10)
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
    ("code", "reason", "kind"),
    [
        ("PERMISSION_DENIED", "NO_ACCESS", PermissionDeniedError),
        ("UNIMPLEMENTED", "", UnimplementedError),
        ("INTERNAL", "INTERNAL", InternalError),
        ("RESOURCE_EXHAUSTED", "", ResourceExhaustedError),
    ],
)
def test_final_errors_of_the_service_are_not_retried(
    many: Many, server: FakeServer, code: str, reason: str, kind: type
) -> None:
    """A request that the service refuses for good is sent once."""
    server.fail_next("Embed", code=code, reason=reason, retryable=False, after=1)
    chunks, error = many(numbered(40), chunk_texts=10, window_chunks=1)
    assert type(error) is kind
    check_rows(chunks, numbered(10))
    assert methods(server).count("Embed") == 2


@pytest.mark.parametrize("window_chunks", [1, 8])
def test_vectors_of_two_spaces_are_refused(many: Many, server: FakeServer, window_chunks: int) -> None:
    """If the model changes, the server refuses requests with the old space_id, and the client the other responses."""

    def change_model(_received: Received) -> None:
        """Changes the space at the third request."""
        if len(received(server, "Embed")) == 3:
            server.space_id = "space-2"

    server.on_request = change_model
    chunks, error = many(numbered(20), chunk_texts=5, window_chunks=window_chunks)
    assert isinstance(error, SpaceMismatchError)
    assert error.reason == "SPACE_MISMATCH"
    assert len(chunks) == 2 if window_chunks == 1 else len(chunks) <= 2  # calls in flight arrive in any order
    check_rows(chunks, numbered(5 * len(chunks)))


def test_limits_that_shrink_during_the_call_are_kept(many: Many, server: FakeServer) -> None:
    """A server restarted with smaller limits receives smaller requests."""

    def shrink(received: Received) -> None:
        """Lowers the limit of texts after the client has fetched it."""
        if received.method == "Embed":
            server.max_texts = 3

    server.on_request = shrink
    found = many(numbered(100), chunk_texts=10)
    check_whole(found, numbered(100))
    assert max(map(len, found[0])) <= 3


@pytest.mark.parametrize("error", [RuntimeError("the file is gone"), KeyboardInterrupt()])
def test_an_error_of_the_source_ends_the_call(many: Many, server: FakeServer, error: BaseException) -> None:
    """The error is raised after the vectors of the texts before it, KeyboardInterrupt at once; no call remains."""

    def source() -> Iterator[str]:
        """Yields texts, then raises."""
        yield from numbered(8)
        raise error

    chunks, found = many(source(), chunk_texts=3, window_chunks=2)  # the last texts are read after the first response
    assert found is error
    if isinstance(error, Exception):
        check_rows(chunks, numbered(8))
    server.wait_until_idle()


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
    many: Many, server: FakeServer, wrong: dict[str, Any]
) -> None:
    """The error names the argument, and no request is sent."""
    _, error = many(**{"texts": ["a"], **wrong})
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field == next(iter(wrong))
    assert not server.requests
