"""Exceptions of the client and their attributes."""

import ast
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
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
from isogloss.testing import FakeServer

from tests.support.lying_server import failing, lying_server


def failure(client: Client) -> IsoglossError:
    """Returns the error of a call for which the server has a scripted error."""
    with pytest.raises(IsoglossError) as raised:
        client.embed(["a"])
    return raised.value


def test_every_status_has_an_exception() -> None:
    """The table has all statuses of gRPC except OK, and no others."""
    assert set(errors.BY_CODE) == {status.name for status in grpc.StatusCode} - {"OK"}


def raised_reasons() -> Iterator[tuple[str, str]]:
    """Yields each reason in a call in the source of the client, and the name of the called function or class."""
    files = [file for file in Path(errors.__file__).parent.rglob("*.py") if not {"v1", "testing"} & set(file.parts)]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    positions = {
        node.name: [argument.arg for argument in node.args.args].index("reason")
        for node in nodes
        if isinstance(node, ast.FunctionDef) and "reason" in [argument.arg for argument in node.args.args]
    }
    for call in nodes:
        if isinstance(call, ast.Call):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            place = positions.get(name, len(call.args))
            values = [*call.args[place : place + 1], *(key.value for key in call.keywords if key.arg == "reason")]
            yield from ((value.value, name) for value in values if isinstance(value, ast.Constant) and value.value)


def test_every_reason_of_the_client_is_documented() -> None:
    """CLIENT_REASONS has the reasons in the source, and no others, with the exceptions that have them."""
    found = set(raised_reasons())
    assert {reason for reason, _ in found} == set(errors.CLIENT_REASONS)
    for reason, name in found:
        kind = getattr(errors, name, None)
        assert kind is None or kind in errors.CLIENT_REASONS[reason].exceptions


def test_every_exception_is_documented_and_reachable() -> None:
    """The tree in the module's docstring has each class, and each class belongs to a status."""
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IsoglossError)}
    assert all(kind.__name__ in str(errors.__doc__) for kind in classes)
    assert classes - {IsoglossError} == {*errors.BY_CODE.values(), *errors.BY_REASON.values()}


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_a_status_raises_its_exception(client: Client, server: FakeServer, status: grpc.StatusCode) -> None:
    """Each status becomes the exception of the table, with its code and message."""
    server.fail_next("Embed", code=status.name, reason="", message="what happened", retryable=False)
    error = failure(client)
    assert type(error) is errors.BY_CODE[status.name]
    assert (error.code, error.message) == (status.name, "what happened")


def test_details_become_attributes(client: Client, server: FakeServer) -> None:
    """Reason, metadata, violations, delay and request id become attributes of the exception."""
    server.fail_next(
        "Embed",
        code="INVALID_ARGUMENT",
        reason="QUOTA",
        message="no",
        fields=["texts[1]"],
        metadata={"limit": "3"},
        retry_after_s=1.5,
    )
    error = failure(client)
    assert (error.reason, error.metadata, error.retry_after_s) == ("QUOTA", {"limit": "3"}, 1.5)
    assert error.violations == (FieldViolation("texts[1]", "no"),)
    assert error.request_id
    assert str(error) == f"no [QUOTA, texts[1], request {error.request_id}]"


def test_space_mismatch_has_its_own_class(client: Client, server: FakeServer) -> None:
    """The reason SPACE_MISMATCH selects a subclass of the status' class."""
    server.fail_next("Embed", code="FAILED_PRECONDITION", reason="SPACE_MISMATCH")
    assert type(failure(client)) is SpaceMismatchError


def test_a_reason_of_another_status_does_not_change_the_class() -> None:
    """The class stays that of the status."""
    assert errors.error_class("INTERNAL", "SPACE_MISMATCH") is InternalError
    assert errors.error_class("A_NEWER_CODE", "") is InternalError


def test_the_message_does_not_affect_the_class(client: Client, server: FakeServer) -> None:
    """Words in the message do not select another class."""
    server.fail_next("Embed", code="INVALID_ARGUMENT", reason="", message="SPACE_MISMATCH: deadline exceeded")
    assert type(failure(client)) is InvalidArgumentError


@pytest.mark.parametrize("damaged", [b"\xff\xff\xff", b"\x1a\x04\x0a\x02\xff\xff"])
def test_damaged_details_do_not_hide_the_error(damaged: bytes) -> None:
    """Details that cannot be decoded are left out; code, message and request id remain."""
    trailers = [("grpc-status-details-bin", damaged), ("x-request-id", "r-2")]
    with (
        lying_server(Embed=failing(grpc.StatusCode.NOT_FOUND, "gone", trailers)) as target,
        Client(target) as client,
    ):
        error = failure(client)
    assert (error.code, error.message, error.reason, error.request_id) == ("NOT_FOUND", "gone", "", "r-2")


def test_a_damaged_detail_does_not_hide_the_others() -> None:
    """The details are decoded one by one."""
    packed = b"\x08\x05\x1a\x2d\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x01\xff"
    good = b"\x1a\x33\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x07\x0a\x03WHY\x12\x00"
    embed = failing(grpc.StatusCode.NOT_FOUND, "gone", [("grpc-status-details-bin", packed + good)])
    with lying_server(Embed=embed) as target, Client(target) as client:
        assert failure(client).reason == "WHY"


@pytest.mark.parametrize(
    ("code", "retryable"),
    [("UNAVAILABLE", True), ("RESOURCE_EXHAUSTED", True), ("INVALID_ARGUMENT", False), ("DEADLINE_EXCEEDED", False)],
)
def test_retryable_follows_the_status(code: str, retryable: bool) -> None:
    """Transient statuses are retryable."""
    assert errors.BY_CODE[code]("x").retryable is retryable


def test_a_pushback_of_minus_one_is_not_retryable(client: Client, server: FakeServer) -> None:
    """If the server sends the pushback -1, the error is not retryable, for all statuses."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", retryable=False)
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


def test_errors_are_one_printable_line(client: Client, server: FakeServer) -> None:
    """Control characters and line ends of a server cannot forge lines of a log, or control a terminal."""
    hostile = "a\x1b[2J\r\nERROR forged\u202e\x9b\u2028b"
    server.fail_next("Embed", code="NOT_FOUND", reason=hostile, message=hostile, fields=[f"{hostile}x"])
    error = failure(client)
    assert error.message == "a [2J  ERROR forged  b"
    for text in (error.message, str(error), str(pickle.loads(pickle.dumps(error)))):
        assert text.isprintable()


@pytest.mark.parametrize("number", ["9" * 5000, "\u0663", "-1", ""])
def test_numbers_of_any_form_in_an_error_do_not_hide_it(client: Client, server: FakeServer, number: str) -> None:
    """A row that is not a number of ordinary length stays as the server sent it."""
    field = f"texts[{number}]"
    server.max_texts = 1
    server.fail_next(
        "Embed", code="INVALID_ARGUMENT", reason="R", message="no", fields=[field], metadata={"index": number}, after=1
    )
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a", "b"])
    assert raised.value.reason == "R"


def test_tracebacks_hide_exceptions_of_grpc(client: Client, server: FakeServer) -> None:
    """A traceback has this package's exception alone; that of grpc remains as __context__."""
    server.fail_next("Embed", code="INTERNAL", reason="")
    error = failure(client)
    shown = "".join(traceback.format_exception(error))
    assert "_InactiveRpcError" not in shown
    assert error.__cause__ is None


def test_a_refused_connection_is_retryable() -> None:
    """A target without a server raises UnavailableError, which is retryable."""
    with Client("127.0.0.1:1") as client, pytest.raises(UnavailableError) as raised:
        client.models()
    assert raised.value.retryable
