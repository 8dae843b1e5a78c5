"""Error details: built, read back, limited in size, and sent as trailers."""

import math

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from isogloss.wire.sizes import MAX_DETAILS_BYTES, MAX_VIOLATIONS
from isogloss.wire.status import (
    DETAILS_TRAILER,
    DOMAIN,
    NO_RETRY,
    PUSHBACK_TRAILER,
    ErrorDetails,
    build,
    build_row_error,
    code_name,
    parse,
    read,
    trailers,
)

DETAILS = ErrorDetails(
    reason="TOO_MANY_TEXTS",
    metadata={"limit": "3", "index": "1"},
    violations=(("texts", "4 texts"),),
    retry_after_s=1.5,
)


def test_details_are_read_as_they_were_built() -> None:
    """Reason, metadata, violations and delay survive the message, whose ErrorInfo has the domain of the contract."""
    status = status_pb2.Status.FromString(build(code_pb2.INVALID_ARGUMENT, "wrong", DETAILS).SerializeToString())
    assert (code_name(status), status.message, read(status)) == ("INVALID_ARGUMENT", "wrong", DETAILS)
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert info.domain == DOMAIN


def test_a_row_error_has_neither_violations_nor_its_index() -> None:
    """RowError.row has the number of the row."""
    details = read(build_row_error(code_pb2.INVALID_ARGUMENT, "wrong", DETAILS))
    assert (details.violations, details.metadata) == ((), {"limit": "3"})


def test_details_are_limited_in_size_and_number() -> None:
    """Long strings are cut; violations above the maximum number or the maximum size are dropped, the first are kept."""
    short = ErrorDetails(violations=[("texts", "empty")] * 100)
    assert len(read(build(code_pb2.INVALID_ARGUMENT, "m", short)).violations) == MAX_VIOLATIONS
    long = ErrorDetails(reason="R", metadata={"a": "x" * 9999}, violations=[("texts" * 40, "y" * 999)] * 100)
    status = build(code_pb2.INVALID_ARGUMENT, "z" * 9999, long)
    assert status.ByteSize() <= MAX_DETAILS_BYTES
    assert 0 < len(read(status).violations) < MAX_VIOLATIONS
    assert status.message.endswith("…")


@pytest.mark.parametrize(
    ("retry_after_s", "remaining_s", "pushback"),
    [(None, 9.0, None), (0.0011, 9.0, (PUSHBACK_TRAILER, "2")), (9.0, 9.0, NO_RETRY), (math.inf, math.inf, NO_RETRY)],
)
def test_the_pushback_follows_the_delay_and_the_deadline(
    retry_after_s: float | None, remaining_s: float, pushback: tuple[str, str] | None
) -> None:
    """The pushback is the delay in whole milliseconds, rounded up, or -1 for a delay beyond the deadline."""
    status = build(code_pb2.UNAVAILABLE, "m", ErrorDetails(reason="R"))
    (name, value), *others = trailers(status, retry_after_s, remaining_s)
    assert (name, parse(value)) == (DETAILS_TRAILER, status)  # type: ignore[arg-type]
    assert others == ([] if pushback is None else [pushback])


def test_damaged_bytes_and_unknown_codes_are_tolerated() -> None:
    """Bytes that are not a status become an empty one; a code that gRPC does not have becomes UNKNOWN."""
    assert parse(b"\xff\xff") == status_pb2.Status()
    assert code_name(status_pb2.Status(code=99)) == "UNKNOWN"
