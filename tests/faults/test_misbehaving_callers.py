"""Callers that cancel, disconnect, do not read, or send incomplete messages."""

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.process_state import Held, Observer
from tests.support.raw_http2 import (
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    RawCaller,
    call_headers,
    frame,
    grpc_message,
)
from tests.support.server_process import ServerProcess

CALLERS = 40
MIN_CONNECTIONS = CALLERS // 2  # fewer than CALLERS: connections of earlier tests may close meanwhile
LONG = pb.EmbedRequest(texts=[f"text {number} " + "of many words " * 40 for number in range(100)])
WIDE_TEXTS, WINDOW_REQUESTS = 64, 32  # 1 KiB of response each; the default window


@pytest.fixture
def before(observer: Observer) -> Held:
    """The resources of the server before the test."""
    observer.check_freed(held := observer.held())
    return held


@contextlib.contextmanager
def stub_on(server: ServerProcess) -> Iterator[Any]:
    """Yields a stub on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


def test_cancelled_calls_free_all_resources(server: ServerProcess, observer: Observer, before: Held) -> None:
    """Calls that are cancelled before they are read or during their work hold no resources afterwards."""
    with stub_on(server) as stub:
        for _ in range(5):
            done = observer.health().embedded_texts
            calls = [stub.Embed.future(LONG) for _ in range(CALLERS)]
            observer.until(lambda health, done=done: health.queued_texts > 0 or health.embedded_texts > done)
            for call in calls:
                call.cancel()
    observer.check_freed(before)
    observer.check_answers()


def test_streams_of_reset_connections_free_all_resources(
    server: ServerProcess, observer: Observer, before: Held
) -> None:
    """If a connection is reset, the requests in flight of its stream are cancelled."""
    some = pb.EmbedRequest(texts=LONG.texts[:50])  # flow control permits two of them without a response
    done = observer.health().embedded_texts
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(RawCaller(server.address)) for _ in range(CALLERS)]
        for caller in callers:
            caller.begin("EmbedStream")
            for number in range(2):
                message = pb.EmbedStreamRequest(id=number, request=some)
                caller.data(grpc_message(message.SerializeToString()))
        observer.until(lambda health: health.queued_texts > 0 or health.embedded_texts > done)
        for caller in callers:
            caller.reset()
    observer.check_freed(before)
    observer.check_answers()


def test_a_caller_that_reads_no_responses_is_bounded(server: ServerProcess, observer: Observer, before: Held) -> None:
    """A stream without a reader holds at most its window, delays no other call, and frees all at its end."""
    done = observer.health().embedded_texts
    request = pb.EmbedRequest(texts=["a"] * WIDE_TEXTS, normalize=False)
    with RawCaller(server.address) as caller:
        caller.begin("EmbedStream")
        for number in range(60_000 // (3 * WIDE_TEXTS + 20)):  # as many as flow control permits without a response
            message = pb.EmbedStreamRequest(id=number, request=request).SerializeToString()
            caller.data(grpc_message(message))
        observer.until(lambda health: health.embedded_texts - done >= WINDOW_REQUESTS * WIDE_TEXTS)
        other_calls = 50
        for _ in range(other_calls):
            observer.check_answers()
        embedded = observer.health().embedded_texts - done - 3 * other_calls
        assert embedded <= (WINDOW_REQUESTS + 4) * WIDE_TEXTS
        assert observer.held().resident_mb - before.resident_mb < 64
    observer.check_freed(before)


def test_malformed_bytes_end_a_stream_whose_response_is_pending(server: ServerProcess, observer: Observer) -> None:
    """Malformed bytes end a stream with their status, also while flow control holds back a response."""
    done = observer.health().embedded_texts
    request = pb.EmbedStreamRequest(id=1, request=pb.EmbedRequest(texts=["a"] * 8))
    with RawCaller(server.address, preface=False) as caller:
        caller.send(
            PREFACE + frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
        )  # flow control permits no response yet
        caller.begin("EmbedStream")
        caller.data(grpc_message(request.SerializeToString()))
        observer.until(lambda health: health.embedded_texts >= done + 8 and not health.queued_texts)
        caller.data(grpc_message(b"\xff\xff"))
        for _ in range(20):
            observer.check_answers()
        caller.send(frame(WINDOW_UPDATE, struct.pack(">I", 1 << 20), stream=1))
        caller.wait_for_status()


INCOMPLETE = {
    "nothing": b"",
    "half the preface": PREFACE[:10],
    "no call": PREFACE + frame(SETTINGS),
    "half a frame": PREFACE + frame(SETTINGS) + frame(SETTINGS, b"\0" * 60)[:20],
}


@pytest.mark.parametrize("sent", INCOMPLETE)
def test_incomplete_connections_do_not_affect_other_calls(
    server: ServerProcess, observer: Observer, before: Held, sent: str
) -> None:
    """While connections send nothing more, other calls succeed; all resources are freed when they close."""
    with contextlib.ExitStack() as stack:
        for _ in range(CALLERS):
            stack.enter_context(RawCaller(server.address, preface=False)).send(INCOMPLETE[sent])
        observer.until(lambda _: observer.held().descriptors >= before.descriptors + MIN_CONNECTIONS)
        observer.check_answers()
    observer.check_freed(before)


@pytest.mark.parametrize("method", ["Embed", "EmbedStream", "Similarity", "/grpc.health.v1.Health/Check"])
def test_incomplete_messages_do_not_affect_other_calls(
    server: ServerProcess, observer: Observer, before: Held, method: str
) -> None:
    """While callers wait after half a message, other calls succeed; all resources are freed when they close."""
    with contextlib.ExitStack() as stack:
        for number in range(CALLERS):
            caller = stack.enter_context(RawCaller(server.address))
            caller.begin(method)
            caller.data(grpc_message(b"\x0a\x04half", length=1000)[: 1 + number % 11])
        observer.until(lambda _: observer.held().descriptors >= before.descriptors + MIN_CONNECTIONS)
        observer.check_answers()
        assert observer.health().queued_texts == 0
    observer.check_freed(before)


def test_health_is_answered_while_callers_reset_their_calls(
    server: ServerProcess, observer: Observer, before: Held
) -> None:
    """Health has an answer for each call while connections begin and reset thousands of calls."""
    begin, reset = call_headers("Embed"), struct.pack(">I", 8)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(RawCaller(server.address)) for _ in range(4)]
        for first in range(1, 4000, 200):
            burst = b"".join(
                frame(HEADERS, begin, flags=END_HEADERS, stream=stream) + frame(RST_STREAM, reset, stream=stream)
                for stream in range(first, first + 200, 2)
            )
            for caller in callers:
                caller.send(burst)
            assert observer.health().model
    observer.check_freed(before)
    observer.check_answers()


def test_connections_beyond_the_limit_are_closed() -> None:
    """The server closes connections beyond its limit, and those before it are served."""
    with ServerProcess("--max-connections", "2") as server, stub_on(server) as stub:
        assert stub.Health(pb.HealthRequest(), timeout=60).models
        with RawCaller(server.address), RawCaller(server.address) as third:
            third.read_to_end()
            assert stub.Health(pb.HealthRequest(), timeout=60).models
