"""Exceptions of the client and their attributes."""

import pickle
import traceback

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from isogloss import (
    Client,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    IsoglossError,
    ResourceExhaustedError,
    SpaceMismatchError,
    UnavailableError,
    errors,
)

from tests.support.scripted_server import Fault, Script, refusal

NO_RETRY = ("grpc-retry-pushback-ms", "-1")


def failure(client: Client) -> IsoglossError:
    """Returns the error of a call that fails by the script."""
    with pytest.raises(IsoglossError) as raised:
        client.embed(["a"])
    return raised.value


def test_every_status_has_an_exception() -> None:
    """The table has all statuses of gRPC except OK, and no others."""
    assert set(errors.BY_CODE) == {status.name for status in grpc.StatusCode} - {"OK"}


def test_every_exception_is_documented_and_reachable() -> None:
    """The tree in the module's docstring has each class, and each class belongs to a status."""
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IsoglossError)}
    assert all(kind.__name__ in str(errors.__doc__) for kind in classes)
    assert classes - {IsoglossError} == {*errors.BY_CODE.values(), *errors.BY_REASON.values()}


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_a_status_raises_its_exception(client: Client, script: Script, status: grpc.StatusCode) -> None:
    """Each status becomes the exception of the table, with its code and message."""
    script.faults = [Fault(status, "what happened", trailers=[NO_RETRY])]
    error = failure(client)
    assert type(error) is errors.BY_CODE[status.name]
    assert (error.code, error.message) == (status.name, "what happened")


def test_details_become_attributes(client: Client, script: Script) -> None:
    """Reason, metadata, violations, delay and request id become attributes of the exception."""
    details = [
        error_details_pb2.ErrorInfo(reason="QUOTA", domain="isogloss", metadata={"limit": "3"}),
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="texts[1]", description="too much")]
        ),
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
    ]
    script.faults = [Fault(grpc.StatusCode.INVALID_ARGUMENT, "no", details, [("x-request-id", "r-1")])]
    error = failure(client)
    assert (error.reason, error.metadata, error.retry_after_s) == ("QUOTA", {"limit": "3"}, 1.5)
    assert error.violations == (FieldViolation("texts[1]", "too much"),)
    assert error.request_id == "r-1"
    assert str(error) == "no [QUOTA, texts[1], request r-1]"


def test_space_mismatch_has_its_own_class(client: Client, script: Script) -> None:
    """The reason SPACE_MISMATCH selects a subclass of the status' class."""
    script.faults = [refusal("SPACE_MISMATCH", code=grpc.StatusCode.FAILED_PRECONDITION)]
    assert type(failure(client)) is SpaceMismatchError


def test_a_reason_of_another_status_does_not_change_the_class() -> None:
    """The class stays that of the status."""
    assert errors.error_class("INTERNAL", "SPACE_MISMATCH") is InternalError
    assert errors.error_class("A_NEWER_CODE", "") is InternalError


def test_the_message_does_not_affect_the_class(client: Client, script: Script) -> None:
    """Words in the message do not select another class."""
    script.faults = [Fault(grpc.StatusCode.INVALID_ARGUMENT, "SPACE_MISMATCH: deadline exceeded")]
    assert type(failure(client)) is InvalidArgumentError


@pytest.mark.parametrize("damaged", [b"\xff\xff\xff", b"\x1a\x04\x0a\x02\xff\xff"])
def test_damaged_details_do_not_hide_the_error(client: Client, script: Script, damaged: bytes) -> None:
    """Details that cannot be decoded are left out; code, message and request id remain."""
    trailers = [("grpc-status-details-bin", damaged), ("x-request-id", "r-2")]
    script.faults = [Fault(grpc.StatusCode.NOT_FOUND, "gone", trailers=trailers)]
    error = failure(client)
    assert (error.code, error.message, error.reason, error.request_id) == ("NOT_FOUND", "gone", "", "r-2")


def test_a_damaged_detail_does_not_hide_the_others(client: Client, script: Script) -> None:
    """The details are decoded one by one."""
    packed = b"\x08\x05\x1a\x2d\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x01\xff"
    good = b"\x1a\x33\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x07\x0a\x03WHY\x12\x00"
    script.faults = [Fault(grpc.StatusCode.NOT_FOUND, "gone", trailers=[("grpc-status-details-bin", packed + good)])]
    assert failure(client).reason == "WHY"


@pytest.mark.parametrize(
    ("code", "retryable"),
    [("UNAVAILABLE", True), ("RESOURCE_EXHAUSTED", True), ("INVALID_ARGUMENT", False), ("DEADLINE_EXCEEDED", False)],
)
def test_retryable_follows_the_status(code: str, retryable: bool) -> None:
    """Transient statuses are retryable."""
    assert errors.BY_CODE[code]("x").retryable is retryable


def test_a_pushback_of_minus_one_is_not_retryable(client: Client, script: Script) -> None:
    """If the server sends the pushback -1, the error is not retryable, for all statuses."""
    script.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=[NO_RETRY])]
    error = failure(client)
    assert isinstance(error, ResourceExhaustedError)
    assert not error.retryable


def test_errors_have_builtin_base_classes() -> None:
    """InvalidArgumentError is a ValueError, and DeadlineExceededError a TimeoutError."""
    assert issubclass(InvalidArgumentError, ValueError)
    assert issubclass(DeadlineExceededError, TimeoutError)


@pytest.mark.parametrize("kind", [*errors.BY_CODE.values(), SpaceMismatchError])
def test_errors_can_be_pickled(kind: type[IsoglossError]) -> None:
    """Pickling keeps the class and all attributes."""
    error = kind("m", reason="R", metadata={"a": "b"}, violations=(FieldViolation("f", "d"),), request_id="r")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy._attributes()) == (str(error), error._attributes())


def test_tracebacks_hide_exceptions_of_grpc(client: Client, script: Script) -> None:
    """A traceback has this package's exception alone; that of grpc remains as __context__."""
    script.faults = [Fault(grpc.StatusCode.INTERNAL)]
    error = failure(client)
    shown = "".join(traceback.format_exception(error))
    assert "_InactiveRpcError" not in shown
    assert error.__cause__ is None


def test_a_refused_connection_is_retryable() -> None:
    """A target without a server raises UnavailableError, which is retryable."""
    with Client("127.0.0.1:1") as client, pytest.raises(UnavailableError) as raised:
        client.models()
    assert raised.value.retryable
