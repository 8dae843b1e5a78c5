"""Any bytes as the requests of every RPC of a real server: always a status, and the server is as it was."""

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

ALL = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture(scope="module")
def caller(server: ServerProcess) -> Iterator[Caller]:
    """A connection that bytes are sent over."""
    caller = Caller(server.address)
    yield caller
    caller.close()


@pytest.fixture(autouse=True)
def as_it_was(observer: Observer, caller: Caller) -> Iterator[None]:
    """Holds the server, after each test, to what it held before."""
    for method in METHODS.values():
        caller.call(method, method.seeds[0].SerializeToString())
    with observer.unharmed():
        yield


@ALL
@pytest.mark.parametrize("examples", [120, pytest.param(3000, marks=pytest.mark.faults_long)])
def test_any_bytes_have_a_status(caller: Caller, method: Method, examples: int) -> None:
    """Random bytes, and good requests that were changed, are answered with a status that says whose fault it is."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(requests(method), min_size=1, max_size=3 if method.streams else 1))
    def holds(sent: list[bytes]) -> None:
        caller.call(method, *sent)

    holds()


def strings(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yields the path of every string field of a message, through those that it holds."""
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*path, field)
        elif field.message_type is not None:
            yield from strings(field.message_type, (*path, field))


def spelled(path: tuple[FieldDescriptor, ...], text: bytes) -> bytes:
    """Returns a message that holds nothing but these bytes, at the end of a path of fields."""
    for field in reversed(path):
        assert field.number < 16
        text = bytes([field.number << 3 | 2, len(text)]) + text
    return text


STRINGS = [(name, path) for name, method in METHODS.items() for path in strings(method.request.DESCRIPTOR)]


@pytest.mark.parametrize(("name", "path"), STRINGS, ids=lambda part: part if isinstance(part, str) else part[-1].name)
def test_text_that_is_no_utf8_is_the_callers_fault(
    caller: Caller, name: str, path: tuple[FieldDescriptor, ...]
) -> None:
    """In every string field of every request bytes that are no UTF-8 are INVALID_ARGUMENT."""
    for wrong in (b"\xc3\x28", b"\xff", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        assert caller.call(METHODS[name], spelled(path, wrong)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("path", ["/", "//", "/a", OURS, f"{OURS}embed", f"{OURS}Embed/", "/" + "x" * 4000, "/%00/é"])
def test_methods_that_are_none_are_unimplemented(server: ServerProcess, path: str) -> None:
    """Whatever a method is called, one that the server does not have is UNIMPLEMENTED."""
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(path)(b"", timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


UNFOLDED = 128 * 1024**2
PACKED = {grpc.Compression.Gzip: "gzip", grpc.Compression.Deflate: "deflate"}


@pytest.mark.parametrize("compression", PACKED)
def test_a_message_that_unfolds_beyond_the_limit_is_refused(
    server: ServerProcess, observer: Observer, compression: grpc.Compression
) -> None:
    """A small compressed message of a large one is RESOURCE_EXHAUSTED, and never stands in memory unfolded."""
    before = observer.held()
    with grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(f"{OURS}Embed", lambda size: b"\0" * size)
        with pytest.raises(grpc.RpcError) as raised:
            call(UNFOLDED, compression=compression, timeout=60)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert observer.held().resident_mb - before.resident_mb < GROWN_MB


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "br", "", "gzip, gzip", "\xff"])
@pytest.mark.parametrize("packed", [b"no such thing", gzip.compress(b"\0" * 9999)[:-9], zlib.compress(b"")[:3], b""])
def test_what_is_not_compressed_as_it_says_harms_nobody(server: ServerProcess, encoding: str, packed: bytes) -> None:
    """A message that cannot be unfolded, or by no way that is known, ends its own call."""
    with RawCaller(server.address) as raw:
        raw.begin("Embed", (b"grpc-encoding", encoding.encode("latin-1")))
        raw.data(grpc_message(packed, compressed=True), flags=END_STREAM)
        raw.end_saying()
        assert raw.read_to_end()
