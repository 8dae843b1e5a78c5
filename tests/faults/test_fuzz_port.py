"""Arbitrary bytes on the port: the server closes connections that are not gRPC, and is unaffected."""

import json
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.process_state import Observer
from tests.support.raw_http2 import (
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PREFACE,
    SETTINGS,
    RawCaller,
    call_headers,
    frame,
    grpc_message,
    header_block,
)
from tests.support.server_process import ServerProcess


@pytest.fixture(autouse=True)
def unaffected(observer: Observer) -> Iterator[None]:
    """Asserts after each test that the server has freed the resources of the test."""
    with observer.unaffected():
        yield


def exchange(server: ServerProcess, *parts: bytes) -> bytes:
    """Sends bytes and returns all bytes of the server until it closes the connection."""
    with RawCaller(server.address, preface=False) as raw:
        for part in parts:
            raw.send(part)
        raw.half_close()
        return raw.read_to_end()


FRAMES = st.builds(
    lambda kind, flags, stream, payload: frame(kind, payload, flags=flags, stream=stream),
    st.one_of(st.integers(0, 10), st.integers(0, 255)),
    st.integers(0, 255),
    st.one_of(st.sampled_from([0, 1, 3, 5]), st.integers(0, 2**32 - 1)),
    st.binary(max_size=64),
)
VALID_CALL = frame(HEADERS, call_headers("Embed"), flags=END_HEADERS, stream=1)
BYTES = {
    "random": st.binary(min_size=1, max_size=500),
    "preface and random": st.binary(max_size=300).map(lambda tail: PREFACE + tail),
    "frames": st.lists(FRAMES, max_size=8).map(lambda frames: PREFACE + frame(SETTINGS) + b"".join(frames)),
    "frames in a call": st.lists(FRAMES, max_size=8).map(
        lambda frames: PREFACE + frame(SETTINGS) + VALID_CALL + b"".join(frames)
    ),
    "headers": st.binary(max_size=200).map(
        lambda block: PREFACE + frame(SETTINGS) + frame(HEADERS, block, flags=END_HEADERS, stream=1)
    ),
}


@pytest.mark.parametrize("kind", BYTES)
def test_arbitrary_bytes_close_only_their_own_connection(server: ServerProcess, kind: str) -> None:
    """The server closes a connection with arbitrary bytes, and serves all others."""

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(BYTES[kind])
    def check(sent: bytes) -> None:
        exchange(server, sent)

    check()


def test_bytes_of_a_caller_are_not_in_the_log(server: ServerProcess, observer: Observer) -> None:
    """The debug data of a GOAWAY frame, with line breaks, does not appear in the log."""
    before = len(server.lines)
    debug_data = struct.pack(">II", 0, 99) + b'\n{"level": "error", "message": "forged"}\n'
    exchange(server, PREFACE + frame(SETTINGS) + VALID_CALL + frame(GOAWAY, debug_data))
    observer.until(lambda _: len(server.lines) > before + 100)  # the log lines of the calls of `until`
    lines = [json.loads(line) for line in server.lines[before:]]
    assert {line["message"] for line in lines} == {"call"}


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "CONNECT", "PRI"])
def test_http_1_connections_are_closed(server: ServerProcess, method: str) -> None:
    """The server closes a connection with an HTTP/1 request."""
    exchange(server, f"{method} /isogloss.v1.EmbeddingService/Embed HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_tls_connections_are_closed(server: ServerProcess) -> None:
    """The server closes a connection with a TLS handshake on a port without TLS."""
    context = ssl.create_default_context()
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain, server_hostname="localhost")


CONTINUATION = 9


@pytest.mark.parametrize("kilobytes", [7, 64, 1024])
def test_large_headers_affect_only_their_own_call(server: ServerProcess, kilobytes: int) -> None:
    """Headers of any size are accepted or rejected, and their memory is freed."""
    block = call_headers("Embed", (b"x-large", b"a" * (kilobytes * 1024)))
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [frame(HEADERS, parts[0], flags=END_HEADERS if len(parts) == 1 else 0, stream=1)]
    frames += [frame(CONTINUATION, part, flags=END_HEADERS if part is parts[-1] else 0, stream=1) for part in parts[1:]]
    assert exchange(server, PREFACE + frame(SETTINGS), *frames, grpc_message(b""))


def test_many_headers_affect_only_their_own_call(server: ServerProcess) -> None:
    """Ten thousand small headers are accepted or rejected, and their memory is freed."""
    block = call_headers("Embed") + header_block(*((b"x-%d" % number, b"") for number in range(10_000)))
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [frame(HEADERS, parts[0], stream=1), *(frame(CONTINUATION, part, stream=1) for part in parts[1:])]
    exchange(server, PREFACE + frame(SETTINGS), *frames, frame(CONTINUATION, b"", flags=END_HEADERS, stream=1))


def test_endless_headers_do_not_fill_the_memory(server: ServerProcess) -> None:
    """The server closes a connection with endless CONTINUATION frames before they fill the memory."""
    more = frame(CONTINUATION, header_block((b"x", b"a" * 16_000)), stream=1)
    exchange(server, PREFACE + frame(SETTINGS), frame(HEADERS, call_headers("Embed"), stream=1), *[more] * 2000)


@pytest.mark.parametrize("length", [1, 2**24, 2**31, 2**32 - 1])
def test_a_message_with_a_false_length_holds_no_memory(server: ServerProcess, length: int) -> None:
    """A message whose prefix has a length of gigabytes, without the bytes, allocates no memory."""
    with RawCaller(server.address) as raw:
        raw.begin("Embed")
        raw.data(struct.pack(">BI", 0, length))
        raw.half_close()
        raw.read_to_end()
