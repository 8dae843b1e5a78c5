"""Arbitrary bytes as requests of every RPC: each gets an expected status, and the server is unaffected."""

import gzip
import zlib
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_caller import Caller
from tests.fuzz.seeds import METHODS, OURS, Method
from tests.fuzz.strategies import requests
from tests.support.process_state import GROWN_MB, Observer
from tests.support.raw_http2 import END_STREAM, RawCaller, grpc_message
from tests.support.server_process import ServerProcess

ALL_METHODS = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture(scope="module")
def caller(server: ServerProcess) -> Iterator[Caller]:
    """A connection for requests of arbitrary bytes."""
    caller = Caller(server.address)
    yield caller
    caller.close()


@pytest.fixture(autouse=True)
def unaffected(observer: Observer, caller: Caller) -> Iterator[None]:
    """Asserts after each test that the server has freed the resources of the test."""
    for method in METHODS.values():
        caller.call(method, method.seeds[0].SerializeToString())
    with observer.unaffected():
        yield


@ALL_METHODS
@pytest.mark.parametrize("examples", [120, pytest.param(3000, marks=pytest.mark.long)])
def test_arbitrary_requests_get_an_expected_status(caller: Caller, method: Method, examples: int) -> None:
    """Random bytes and altered requests get a status of the caller's error, not INTERNAL or UNKNOWN."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(requests(method), min_size=1, max_size=3 if method.streams else 1))
    def check(sent: list[bytes]) -> None:
        caller.call(method, *sent)

    check()


def string_fields(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yields the path of every string field of a message and of the messages in it."""
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*path, field)
        elif field.message_type is not None:
            yield from string_fields(field.message_type, (*path, field))


def encode_field(path: tuple[FieldDescriptor, ...], text: bytes) -> bytes:
    """Returns a message in which only the field at the end of `path` is set, to `text`."""
    for field in reversed(path):
        assert field.number < 16
        text = bytes([field.number << 3 | 2, len(text)]) + text
    return text


STRINGS = [(name, path) for name, method in METHODS.items() for path in string_fields(method.request.DESCRIPTOR)]


@pytest.mark.parametrize(("name", "path"), STRINGS, ids=lambda part: part if isinstance(part, str) else part[-1].name)
def test_invalid_utf8_is_an_invalid_argument(caller: Caller, name: str, path: tuple[FieldDescriptor, ...]) -> None:
    """Bytes that are not UTF-8 in any string field of any request get INVALID_ARGUMENT."""
    for invalid in (b"\xc3\x28", b"\xff", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        assert caller.call(METHODS[name], encode_field(path, invalid)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("path", ["/", "//", "/a", OURS, f"{OURS}embed", f"{OURS}Embed/", "/" + "x" * 4000, "/%00/é"])
def test_unknown_methods_are_unimplemented(server: ServerProcess, path: str) -> None:
    """A call of any unknown method gets UNIMPLEMENTED."""
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(path)(b"", timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


DECOMPRESSED_BYTES = 128 * 1024**2
ENCODINGS = {grpc.Compression.Gzip: "gzip", grpc.Compression.Deflate: "deflate"}


@pytest.mark.parametrize("compression", ENCODINGS)
def test_a_message_that_decompresses_beyond_the_limit_is_rejected(
    server: ServerProcess, observer: Observer, compression: grpc.Compression
) -> None:
    """A small message that is large when decompressed gets RESOURCE_EXHAUSTED, and is not held decompressed."""
    before = observer.held()
    with grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(f"{OURS}Embed", lambda size: b"\0" * size)
        with pytest.raises(grpc.RpcError) as raised:
            call(DECOMPRESSED_BYTES, compression=compression, timeout=60)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert observer.held().resident_mb - before.resident_mb < GROWN_MB


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "br", "", "gzip, gzip", "\xff"])
@pytest.mark.parametrize("message", [b"not compressed", gzip.compress(b"\0" * 9999)[:-9], zlib.compress(b"")[:3], b""])
def test_a_message_that_cannot_be_decompressed_affects_only_its_own_call(
    server: ServerProcess, encoding: str, message: bytes
) -> None:
    """A message with an invalid compression or an unknown encoding ends its own call."""
    with RawCaller(server.address) as raw:
        raw.begin("Embed", (b"grpc-encoding", encoding.encode("latin-1")))
        raw.data(grpc_message(message, compressed=True), flags=END_STREAM)
        raw.half_close()
        assert raw.read_to_end()
