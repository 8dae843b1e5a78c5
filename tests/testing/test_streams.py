"""EmbedStream of FakeServer, as any gRPC client sees it."""

from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from isogloss.testing import FakeServer
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.wire import error_of

Messages = SimpleQueue[pb.EmbedStreamRequest | None]


def message(number: int, *texts: str, **fields: Any) -> pb.EmbedStreamRequest:
    """A request of a stream."""
    return pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=texts), **fields)


def sent(messages: Messages) -> Iterator[pb.EmbedStreamRequest]:
    """What a test puts in a queue, until None."""
    return iter(messages.get, None)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A running server."""
    with FakeServer(dimensions=16) as running:
        yield running


@pytest.fixture
def stream(server: FakeServer) -> Iterator[Any]:
    """Opens a stream of messages."""
    with grpc.insecure_channel(server.target) as channel:
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)

        def opened(messages: Iterable[pb.EmbedStreamRequest]) -> Any:
            """Sends them, and returns the answers."""
            return stub.EmbedStream(iter(messages), timeout=60)

        yield opened


def test_answers_by_id_and_an_error_for_its_message_alone(stream: Any, server: FakeServer) -> None:
    """Each message has one answer under its id; one that fails carries its status, and the stream ends well."""
    answers = {found.id: found for found in stream([message(7, "a"), message(8, ""), message(9, "b", "a")])}
    assert sorted(answers) == [7, 8, 9]
    assert answers[8].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    rows = np.frombuffer(answers[9].response.embeddings.data, "<f4").reshape(2, 16)
    assert rows[1].tobytes() == answers[7].response.embeddings.data
    assert [received.texts for received in server.requests] == [("a",), ("",), ("b", "a")]


def test_more_messages_than_the_window(stream: Any) -> None:
    """Hundreds of messages are all answered, once each."""
    answers = [found.id for found in stream(message(number, "a") for number in range(300))]
    assert sorted(answers) == list(range(300))


def test_a_held_message_stops_no_other(stream: Any, server: FakeServer) -> None:
    """Answers come as they are ready: what comes after a held message is answered before it."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    with server.hold("Embed") as gate:
        messages.put(message(1, "slow"))
        gate.wait_until_held()
        server.hold("Embed").open()  # opens the first as well
    messages.put(message(2, "b"))
    messages.put(None)
    assert {found.id for found in answers} == {1, 2}


def test_a_message_s_own_timeout(stream: Any, server: FakeServer) -> None:
    """A message whose time is up while it is held is answered with DEADLINE_EXCEEDED, alone."""
    with server.hold("Embed"):
        soon = duration_pb2.Duration(nanos=1_000_000)
        [answer] = stream([message(1, "a", timeout=soon)])
    assert answer.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def test_an_id_in_flight_may_not_be_used_again(stream: Any, server: FakeServer) -> None:
    """The second use of an id ends the stream, at once."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    with server.hold("Embed") as gate:
        messages.put(message(1, "a"))
        gate.wait_until_held()
        messages.put(message(1, "b"))
        error = error_of(lambda: next(answers))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "DUPLICATE_ID")


def test_an_answered_id_may_be_used_again(stream: Any) -> None:
    """Once its answer has come, an id is free."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    for _ in range(20):
        messages.put(message(1, "a"))
        assert next(answers).id == 1
    messages.put(None)
    assert list(answers) == []


def test_a_fault_of_embed_answers_for_one_message(stream: Any, server: FakeServer) -> None:
    """A fault planned for Embed meets a message of a stream as well."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", reason="OVERLOADED")
    answers = list(stream([message(1, "a"), message(2, "b")]))
    assert sorted(found.error.code for found in answers) == [0, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]]


def test_a_fault_of_the_stream_ends_it(stream: Any, server: FakeServer) -> None:
    """A drain: what was read is answered, the next message is not, and the stream ends with the fault."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    messages.put(message(1, "a"))
    assert next(answers).id == 1
    server.fail_next("EmbedStream", code="UNAVAILABLE", reason="DRAINING")
    messages.put(message(2, "b"))
    error = error_of(lambda: next(answers))
    assert (error.code, error.reason) == ("UNAVAILABLE", "DRAINING")


def test_dropped_connections_end_streams(stream: Any, server: FakeServer) -> None:
    """A stream with held messages ends with UNAVAILABLE, and the server is there for the next."""
    with server.hold("Embed") as gate:
        answers = stream([message(1, "a")])
        gate.wait_until_held()
        server.drop_connections()
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(list(stream([message(2, "b")]))) == 1


def test_a_caller_that_leaves(stream: Any, server: FakeServer) -> None:
    """A cancelled stream whose window is full leaves nothing behind that would hinder the stop."""
    with server.hold("Embed") as gate:
        answers = stream([message(number, "a") for number in range(40)])
        gate.wait_until_held(32)
        answers.cancel()
    server.stop()
