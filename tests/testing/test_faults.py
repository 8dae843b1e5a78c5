"""What a test may do to a FakeServer: faults, gates, dropped connections, a stop and a start."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from isogloss import (
    Client,
    ClientOptions,
    DeadlineExceededError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from isogloss.testing import FakeServer


def test_faults_that_pass_are_outlived(server: FakeServer, client: Client) -> None:
    """Two refusals with a time to wait are not seen by the program; the third attempt is answered."""
    server.fail_next("Embed", code="UNAVAILABLE", reason="OVERLOADED", retry_after_s=0.01, times=2)
    assert len(client.embed(["a"])) == 1
    assert [received.method for received in server.requests] == ["Embed"] * 3


def test_faults_that_last_reach_the_program(server: FakeServer) -> None:
    """A fault comes with its code, reason, message and the time to wait."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", reason="QUOTA", message="used up", retry_after_s=1.5)
    with Client(options=ClientOptions(target=server.target, attempts=1)) as client:
        with pytest.raises(ResourceExhaustedError) as raised:
            client.embed(["a"])
        error = raised.value
        assert (error.reason, error.message, error.retry_after_s, error.retryable) == ("QUOTA", "used up", 1.5, True)
        assert len(client.embed(["a"])) == 1


def test_a_fault_where_trying_again_is_pointless(server: FakeServer, client: Client) -> None:
    """With retryable=False a client tries no second time."""
    server.fail_next("Similarity", retryable=False)
    with pytest.raises(UnavailableError) as raised:
        client.similarity(["a"], ["b"])
    assert not raised.value.retryable
    assert len(server.requests) == 1


def test_faults_come_in_order_each_to_its_method(server: FakeServer, client: Client) -> None:
    """Faults of one method are met one after the other, and leave other methods alone."""
    server.fail_next("Embed", code="NOT_FOUND", reason="UNKNOWN_MODEL")
    server.fail_next("Embed", code="INTERNAL", reason="")
    assert client.health().models
    with pytest.raises(NotFoundError):
        client.embed(["a"])
    with pytest.raises(InternalError):
        client.embed(["a"])
    assert len(client.embed(["a"])) == 1


def test_wrong_scripts_are_refused(server: FakeServer) -> None:
    """A method or a status that does not exist is an error of the test, told at once."""
    with pytest.raises(ValueError, match="known: Embed, "):
        server.fail_next("embed")
    with pytest.raises(ValueError, match="'BUSY'"):
        server.fail_next("Embed", code="BUSY")
    with pytest.raises(ValueError, match="unknown method"):
        server.hold("Close")


def test_a_held_call_waits_for_its_gate(server: FakeServer, client: Client) -> None:
    """A call is under way, seen by the test, until the gate opens; later ones pass."""
    with ThreadPoolExecutor() as threads:
        with server.hold("Embed") as gate:
            calls = [threads.submit(client.embed, [text]) for text in "ab"]
            gate.wait_until_held(2)
            assert not any(call.done() for call in calls)
            with pytest.raises(TimeoutError, match="2 calls arrived"):
                gate.wait_until_held(3, timeout_s=0)
        assert [len(call.result(30)) for call in calls] == [1, 1]
    assert len(client.embed(["c"])) == 1


def test_a_held_call_ends_with_its_deadline(server: FakeServer, client: Client) -> None:
    """A caller that gives up leaves nothing behind: the server can stop although its gate was never opened."""
    server.hold("Embed")
    with pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.05)
    server.stop()


def test_dropped_connections_are_outlived(server: FakeServer, client: Client) -> None:
    """A call under way when connections drop is tried again by the client, on the same port."""
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


def test_stopped_and_started_again(server: FakeServer) -> None:
    """A stopped server refuses, a started one answers where it was; doing either twice is fine."""
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
