"""What callers do: cancel, vanish, never read, say half of what they meant."""

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
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    RawCaller,
    frame,
    grpc_message,
)
from tests.support.server_process import ServerProcess

CALLERS = 40
MOST = CALLERS // 2  # to wait for: connections of earlier tests may go meanwhile
LONG = pb.EmbedRequest(texts=[f"text {number} " + "of many words " * 40 for number in range(100)])
WIDE_TEXTS, WINDOW_REQUESTS = 64, 32  # of 1 KiB an answer; as the default window has it


@pytest.fixture
def before(observer: Observer) -> Held:
    """What the server holds before the test."""
    observer.check_freed(held := observer.held())
    return held


@contextlib.contextmanager
def stub_on(server: ServerProcess) -> Iterator[Any]:
    """A stub on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


def test_callers_that_cancel_leave_nothing(server: ServerProcess, observer: Observer, before: Held) -> None:
    """Calls that are cancelled, some before they are read and some while they are worked on, leave nothing behind."""
    with stub_on(server) as stub:
        for _ in range(5):
            done = observer.health().embedded_texts
            calls = [stub.Embed.future(LONG) for _ in range(CALLERS)]
            observer.until(lambda health, done=done: health.queued_texts > 0 or health.embedded_texts > done)
            for call in calls:
                call.cancel()
    observer.check_freed(before)
    observer.check_answers()


def test_callers_that_vanish_in_mid_stream_leave_nothing(
    server: ServerProcess, observer: Observer, before: Held
) -> None:
    """Connections that break with requests of a stream in flight take those requests with them."""
    some = pb.EmbedRequest(texts=LONG.texts[:50])  # of which two are what flow control lets a caller say unasked
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
            caller.vanish()
    observer.check_freed(before)
    observer.check_answers()


def test_a_caller_that_never_reads_is_bounded(server: ServerProcess, observer: Observer, before: Held) -> None:
    """A stream whose answers nobody takes holds no more than its window, nobody up, and nothing once it is gone."""
    done = observer.health().embedded_texts
    request = pb.EmbedRequest(texts=["a"] * WIDE_TEXTS, normalize=False)
    with RawCaller(server.address) as caller:
        caller.begin("EmbedStream")
        for number in range(60_000 // (3 * WIDE_TEXTS + 20)):  # what flow control lets a caller say unasked
            message = pb.EmbedStreamRequest(id=number, request=request).SerializeToString()
            caller.data(grpc_message(message))
        observer.until(lambda health: health.embedded_texts - done >= WINDOW_REQUESTS * WIDE_TEXTS)
        answered = 50
        for _ in range(answered):
            observer.check_answers()
        embedded = observer.health().embedded_texts - done - 3 * answered
        assert embedded <= (WINDOW_REQUESTS + 4) * WIDE_TEXTS
        assert observer.held().resident_mb - before.resident_mb < 64
    observer.check_freed(before)


def test_a_fault_while_an_answer_is_written_ends_the_stream(server: ServerProcess, observer: Observer) -> None:
    """Bytes that are no message, though the last answer is not out yet, end a stream with their status."""
    done = observer.health().embedded_texts
    request = pb.EmbedStreamRequest(id=1, request=pb.EmbedRequest(texts=["a"] * 8))
    with RawCaller(server.address, greet=False) as caller:
        caller.send(PREFACE + frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)))  # no answer may be sent yet
        caller.begin("EmbedStream")
        caller.data(grpc_message(request.SerializeToString()))
        observer.until(lambda health: health.embedded_texts >= done + 8 and not health.queued_texts)
        caller.data(grpc_message(b"\xff\xff"))
        for _ in range(20):
            observer.check_answers()
        caller.send(frame(WINDOW_UPDATE, struct.pack(">I", 1 << 20), stream=1))
        caller.until_ended()


HALVES = {
    "nothing at all": b"",
    "half the preface": PREFACE[:10],
    "no call": PREFACE + frame(SETTINGS),
    "half a frame": PREFACE + frame(SETTINGS) + frame(SETTINGS, b"\0" * 60)[:20],
}


@pytest.mark.parametrize("half", HALVES)
def test_connections_that_stay_half_open_harm_nobody(
    server: ServerProcess, observer: Observer, before: Held, half: str
) -> None:
    """Connections that never say what they began to leave others answered, and leave nothing when they go."""
    with contextlib.ExitStack() as stack:
        for _ in range(CALLERS):
            stack.enter_context(RawCaller(server.address, greet=False)).send(HALVES[half])
        observer.until(lambda _: observer.held().descriptors >= before.descriptors + MOST)
        observer.check_answers()
    observer.check_freed(before)


@pytest.mark.parametrize("method", ["Embed", "EmbedStream", "Similarity", "/grpc.health.v1.Health/Check"])
def test_half_a_message_harms_nobody(server: ServerProcess, observer: Observer, before: Held, method: str) -> None:
    """Callers that send half a message and wait, or go, are neither answered nor in anybody's way."""
    with contextlib.ExitStack() as stack:
        for number in range(CALLERS):
            caller = stack.enter_context(RawCaller(server.address))
            caller.begin(method)
            caller.data(grpc_message(b"\x0a\x04half", length=1000)[: 1 + number % 11])
        observer.until(lambda _: observer.held().descriptors >= before.descriptors + MOST)
        observer.check_answers()
        assert observer.health().queued_texts == 0
    observer.check_freed(before)
