"""EmbedStream of FakeServer, used with the generated stubs."""

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
    """Returns a request of a stream."""
    return pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=texts), **fields)


def sent(messages: Messages) -> Iterator[pb.EmbedStreamRequest]:
    """Yields the messages of a queue until None."""
    return iter(messages.get, None)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """Provides a running server."""
    with FakeServer(dimensions=16) as running:
        yield running


@pytest.fixture
def stream(server: FakeServer) -> Iterator[Any]:
    """Provides a function that opens a stream of messages."""
    with grpc.insecure_channel(server.target) as channel:
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)

        def opened(messages: Iterable[pb.EmbedStreamRequest]) -> Any:
            """Sends messages and returns the responses."""
            return stub.EmbedStream(iter(messages), timeout=60)

        yield opened


def test_responses_have_the_id_and_errors_answer_one_message(stream: Any, server: FakeServer) -> None:
    """Each message has one response with its id; an invalid message has an error, and the stream ends with OK."""
    answers = {found.id: found for found in stream([message(7, "a"), message(8, ""), message(9, "b", "a")])}
    assert sorted(answers) == [7, 8, 9]
    assert answers[8].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    rows = np.frombuffer(answers[9].response.embeddings.data, "<f4").reshape(2, 16)
    assert rows[1].tobytes() == answers[7].response.embeddings.data
    assert [received.texts for received in server.requests] == [("a",), ("",), ("b", "a")]


def test_more_messages_than_the_window_are_answered(stream: Any) -> None:
    """Hundreds of messages are answered once each."""
    answers = [found.id for found in stream(message(number, "a") for number in range(300))]
    assert sorted(answers) == list(range(300))


def test_a_held_message_delays_no_other(stream: Any, server: FakeServer) -> None:
    """Messages after a held one are answered."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    with server.hold("Embed") as gate:
        messages.put(message(1, "slow"))
        gate.wait_until_held()
        server.hold("Embed").open()  # opens the first as well
    messages.put(message(2, "b"))
    messages.put(None)
    assert {found.id for found in answers} == {1, 2}


def test_a_held_message_fails_at_its_own_timeout(stream: Any, server: FakeServer) -> None:
    """A message whose timeout passes while it is held is answered with DEADLINE_EXCEEDED."""
    with server.hold("Embed"):
        soon = duration_pb2.Duration(nanos=1_000_000)
        [answer] = stream([message(1, "a", timeout=soon)])
    assert answer.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def test_reusing_an_id_in_flight_ends_the_stream(stream: Any, server: FakeServer) -> None:
    """The second use of an id ends the stream at once with DUPLICATE_ID."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    with server.hold("Embed") as gate:
        messages.put(message(1, "a"))
        gate.wait_until_held()
        messages.put(message(1, "b"))
        error = error_of(lambda: next(answers))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "DUPLICATE_ID")


def test_an_answered_id_can_be_reused(stream: Any) -> None:
    """After its response, an id can be used for another message."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    for _ in range(20):
        messages.put(message(1, "a"))
        assert next(answers).id == 1
    messages.put(None)
    assert list(answers) == []


def test_an_error_of_embed_answers_one_message(stream: Any, server: FakeServer) -> None:
    """An error scripted for Embed applies to a message of a stream as well."""
    server.fail_next("Embed", code="RESOURCE_EXHAUSTED", reason="OVERLOADED")
    answers = list(stream([message(1, "a"), message(2, "b")]))
    assert sorted(found.error.code for found in answers) == [0, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]]


def test_an_error_of_embed_stream_ends_the_stream(stream: Any, server: FakeServer) -> None:
    """As in a drain, earlier messages are answered, the next one is not, and the stream ends with the error."""
    messages: Messages = SimpleQueue()
    answers = stream(sent(messages))
    messages.put(message(1, "a"))
    assert next(answers).id == 1
    server.fail_next("EmbedStream", code="UNAVAILABLE", reason="DRAINING")
    messages.put(message(2, "b"))
    error = error_of(lambda: next(answers))
    assert (error.code, error.reason) == ("UNAVAILABLE", "DRAINING")


def test_dropped_connections_end_streams(stream: Any, server: FakeServer) -> None:
    """A stream with held messages ends with UNAVAILABLE, and the next stream is served."""
    with server.hold("Embed") as gate:
        answers = stream([message(1, "a")])
        gate.wait_until_held()
        server.drop_connections()
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(list(stream([message(2, "b")]))) == 1


def test_a_cancelled_stream_does_not_delay_the_stop(stream: Any, server: FakeServer) -> None:
    """The server stops although a stream with a full window was cancelled."""
    with server.hold("Embed") as gate:
        answers = stream([message(number, "a") for number in range(40)])
        gate.wait_until_held(32)
        answers.cancel()
    server.stop()
