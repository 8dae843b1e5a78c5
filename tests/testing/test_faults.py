"""Scripting a FakeServer: errors, gates, functions at requests, dropped connections, stop and start."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from isogloss import (
    Client,
    ClientOptions,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from isogloss.testing import FakeServer, Received


def test_retries_succeed_after_scripted_errors(server: FakeServer, client: Client) -> None:
    """After two errors with a delay, the third attempt is answered, and the program sees no error."""
    server.fail_next("Embed", code="UNAVAILABLE", reason="OVERLOADED", retry_after_s=0.01, times=2)
    assert len(client.embed(["a"])) == 1
    assert [received.method for received in server.requests] == ["Embed"] * 3


def test_scripted_errors_have_code_reason_message_and_delay(server: FakeServer) -> None:
    """The client raises the error with the values of the script; the next call succeeds."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", reason="QUOTA", message="used up", retry_after_s=1.5)
    with Client(options=ClientOptions(target=server.target, attempts=1)) as client:
        with pytest.raises(ResourceExhaustedError) as raised:
            client.embed(["a"])
        error = raised.value
        assert (error.reason, error.message, error.retry_after_s, error.retryable) == ("QUOTA", "used up", 1.5, True)
        assert len(client.embed(["a"])) == 1


def test_an_error_that_is_not_retryable_is_not_retried(server: FakeServer, client: Client) -> None:
    """With retryable=False the client makes one attempt."""
    server.fail_next("Similarity", retryable=False)
    with pytest.raises(UnavailableError) as raised:
        client.similarity(["a"], ["b"])
    assert not raised.value.retryable
    assert len(server.requests) == 1


def test_scripted_errors_apply_in_order_and_per_method(server: FakeServer, client: Client) -> None:
    """Errors of one method apply to its calls in order, and not to other methods."""
    server.fail_next("Embed", code="NOT_FOUND", reason="UNKNOWN_MODEL")
    server.fail_next("Embed", code="INTERNAL", reason="")
    assert client.health().models
    with pytest.raises(NotFoundError):
        client.embed(["a"])
    with pytest.raises(InternalError):
        client.embed(["a"])
    assert len(client.embed(["a"])) == 1


def test_unknown_methods_and_codes_are_refused(server: FakeServer) -> None:
    """A script with an unknown method or code raises ValueError at once."""
    with pytest.raises(ValueError, match="known: Embed, "):
        server.fail_next("embed")
    with pytest.raises(ValueError, match="'BUSY'"):
        server.fail_next("Embed", code="BUSY")
    with pytest.raises(ValueError, match="unknown method"):
        server.hold("Close")


def test_a_held_call_waits_until_the_gate_opens(server: FakeServer, client: Client) -> None:
    """Calls are in progress until the gate opens; later calls are not held."""
    with ThreadPoolExecutor() as threads:
        with server.hold("Embed") as gate:
            calls = [threads.submit(client.embed, [text]) for text in "ab"]
            gate.wait_until_held(2)
            assert not any(call.done() for call in calls)
            with pytest.raises(TimeoutError, match="2 calls arrived"):
                gate.wait_until_held(3, timeout_s=0)
        assert [len(call.result(30)) for call in calls] == [1, 1]
    assert len(client.embed(["c"])) == 1


def test_a_held_call_ends_at_its_deadline(server: FakeServer, client: Client) -> None:
    """After the deadline of a held call the server can stop, although its gate was never opened."""
    server.hold("Embed")
    with pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.05)
    server.stop()


def test_calls_are_retried_after_dropped_connections(server: FakeServer, client: Client) -> None:
    """A call in progress when connections drop is retried by the client, on the same port."""
    target = server.target
    gate = server.hold("Embed")
    with ThreadPoolExecutor() as threads:
        call = threads.submit(client.embed, ["a"])
        gate.wait_until_held()
        gate_of_the_second = server.hold("Embed")
        gate_of_the_second.open()
        server.drop_connections()
        assert len(call.result(30)) == 1
    assert server.target == target


def test_a_stopped_server_can_be_started_again(server: FakeServer) -> None:
    """A stopped server refuses calls; a restarted one has its address. Repeated stops and starts have no effect."""
    with Client(options=ClientOptions(target=server.target, attempts=1)) as client:
        assert len(client.embed(["a"])) == 1
        server.stop()
        server.stop()
        with pytest.raises(UnavailableError):
            client.embed(["a"])
    server.start()
    server.start()
    with Client(server.target) as client:
        assert len(client.embed(["a"])) == 1


def test_a_scripted_error_can_name_fields_and_metadata(server: FakeServer, client: Client) -> None:
    """Violations and metadata arrive with the error."""
    server.fail_next("Embed", code="INVALID_ARGUMENT", reason="R", fields=["texts[1]"], metadata={"limit": "3"})
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a"])
    assert [violation.field for violation in raised.value.violations] == ["texts[1]"]
    assert raised.value.metadata == {"limit": "3"}


def test_scripted_errors_can_follow_successful_calls(server: FakeServer, client: Client) -> None:
    """With `after`, a number of calls succeed before the error; later calls succeed again."""
    server.fail_next("Embed", code="INTERNAL", reason="", after=2)
    for _ in range(2):
        assert len(client.embed(["a"])) == 1
    with pytest.raises(InternalError):
        client.embed(["a"])
    assert len(client.embed(["a"])) == 1


def test_a_gate_holds_a_range_of_calls(server: FakeServer, client: Client) -> None:
    """`after` calls pass, then `times` calls are held, and all later ones pass."""
    with ThreadPoolExecutor() as threads, server.hold("Embed", after=1, times=1) as gate:
        assert len(client.embed(["passes"])) == 1
        held = threads.submit(client.embed, ["held"])
        gate.wait_until_held()
        assert len(client.embed(["passes"])) == 1
        assert not held.done()
        gate.open()
        assert len(held.result(30)) == 1


def test_a_function_can_change_the_server_at_a_request(server: FakeServer, client: Client) -> None:
    """on_request runs before the request is answered; its changes apply, and its error answers the request."""

    def on_request(received: Received) -> None:
        """Changes the space at the second request, and refuses the third."""
        if len(server.requests) == 2:
            server.space_id = "another-space"
        if len(server.requests) == 3:
            raise NotFoundError(f"{received.method} is refused", reason="UNKNOWN_MODEL")

    server.on_request = on_request
    assert [client.embed(["a"]).space_id for _ in range(2)] == ["fake-space", "another-space"]
    with pytest.raises(NotFoundError, match="Embed is refused"):
        client.embed(["a"])


def test_waiting_until_no_call_is_in_progress(server: FakeServer, client: Client) -> None:
    """The server is idle after the held call has been answered; until then the wait times out."""
    with ThreadPoolExecutor() as threads, server.hold("Embed") as gate:
        call = threads.submit(client.embed, ["a"])
        gate.wait_until_held()
        with pytest.raises(TimeoutError, match="1 calls are still in progress"):
            server.wait_until_idle(timeout_s=0)
        gate.open()
        assert len(call.result(30)) == 1
    server.wait_until_idle()
