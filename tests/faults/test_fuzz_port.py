"""Any bytes on the port: what is no gRPC is ended, and the server is as it was."""

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
def as_it_was(observer: Observer) -> Iterator[None]:
    """Holds the server, after each test, to what it held before."""
    with observer.unharmed():
        yield


def said_to(server: ServerProcess, *parts: bytes) -> bytes:
    """Returns what the server says to some bytes, until it hangs up after them."""
    with RawCaller(server.address, greet=False) as raw:
        for part in parts:
            raw.send(part)
        raw.end_saying()
        return raw.read_to_end()


FRAMES = st.builds(
    lambda kind, flags, stream, payload: frame(kind, payload, flags=flags, stream=stream),
    st.one_of(st.integers(0, 10), st.integers(0, 255)),
    st.integers(0, 255),
    st.one_of(st.sampled_from([0, 1, 3, 5]), st.integers(0, 2**32 - 1)),
    st.binary(max_size=64),
)
TRUE_CALL = frame(HEADERS, call_headers("Embed"), flags=END_HEADERS, stream=1)
BYTES = {
    "random": st.binary(min_size=1, max_size=500),
    "preface and garbage": st.binary(max_size=300).map(lambda tail: PREFACE + tail),
    "frames": st.lists(FRAMES, max_size=8).map(lambda frames: PREFACE + frame(SETTINGS) + b"".join(frames)),
    "frames in a call": st.lists(FRAMES, max_size=8).map(
        lambda frames: PREFACE + frame(SETTINGS) + TRUE_CALL + b"".join(frames)
    ),
    "headers": st.binary(max_size=200).map(
        lambda block: PREFACE + frame(SETTINGS) + frame(HEADERS, block, flags=END_HEADERS, stream=1)
    ),
}


@pytest.mark.parametrize("kind", BYTES)
def test_any_bytes_end_their_own_connection_alone(server: ServerProcess, kind: str) -> None:
    """Whatever is said on a connection, the server hangs up in the end, and serves all others."""

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(BYTES[kind])
    def holds(said: bytes) -> None:
        said_to(server, said)

    holds()


def test_nobody_writes_into_the_log(server: ServerProcess, observer: Observer) -> None:
    """What a caller says of why it goes, line ends and all, is not in the log, whose lines are all the server's own."""
    before = len(server.lines)
    farewell = struct.pack(">II", 0, 99) + b'\n{"level": "error", "message": "forged"}\n'
    said_to(server, PREFACE + frame(SETTINGS) + TRUE_CALL + frame(GOAWAY, farewell))
    observer.until(lambda _: len(server.lines) > before + 100)  # its own lines about the calls that ask
    lines = [json.loads(line) for line in server.lines[before:]]
    assert {line["message"] for line in lines} == {"call"}


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "CONNECT", "PRI"])
def test_http_1_is_turned_away(server: ServerProcess, method: str) -> None:
    """A caller that speaks HTTP/1 is hung up on."""
    said_to(server, f"{method} /isogloss.v1.EmbeddingService/Embed HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_a_caller_that_wants_tls_is_turned_away(server: ServerProcess) -> None:
    """A TLS hello on a port without TLS is hung up on."""
    context = ssl.create_default_context()
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain, server_hostname="localhost")


CONTINUATION = 9


@pytest.mark.parametrize("kilobytes", [7, 64, 1024])
def test_metadata_beyond_all_bounds_ends_its_call_alone(server: ServerProcess, kilobytes: int) -> None:
    """Headers of any size are taken or refused, and none is kept."""
    block = call_headers("Embed", (b"x-large", b"a" * (kilobytes * 1024)))
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [frame(HEADERS, parts[0], flags=END_HEADERS if len(parts) == 1 else 0, stream=1)]
    frames += [frame(CONTINUATION, part, flags=END_HEADERS if part is parts[-1] else 0, stream=1) for part in parts[1:]]
    assert said_to(server, PREFACE + frame(SETTINGS), *frames, grpc_message(b""))


def test_many_headers_end_their_call_alone(server: ServerProcess) -> None:
    """Ten thousand small headers are taken or refused like a large one."""
    block = call_headers("Embed") + header_block(*((b"x-%d" % number, b"") for number in range(10_000)))
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [frame(HEADERS, parts[0], stream=1), *(frame(CONTINUATION, part, stream=1) for part in parts[1:])]
    said_to(server, PREFACE + frame(SETTINGS), *frames, frame(CONTINUATION, b"", flags=END_HEADERS, stream=1))


def test_headers_that_never_end_hold_nothing(server: ServerProcess) -> None:
    """Continuations without an end are cut off before they fill the memory."""
    more = frame(CONTINUATION, header_block((b"x", b"a" * 16_000)), stream=1)
    said_to(server, PREFACE + frame(SETTINGS), frame(HEADERS, call_headers("Embed"), stream=1), *[more] * 2000)


@pytest.mark.parametrize("length", [1, 2**24, 2**31, 2**32 - 1])
def test_a_message_that_says_a_false_length_holds_no_memory(server: ServerProcess, length: int) -> None:
    """A message that announces gigabytes is refused by its length alone, one that comes short is no message."""
    with RawCaller(server.address) as raw:
        raw.begin("Embed")
        raw.data(struct.pack(">BI", 0, length))
        raw.end_saying()
        raw.read_to_end()
