"""HTTP/2 frames and raw connections, for requests that no gRPC library sends."""

import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 0x1, 0x4
ACK = 0x1  # of SETTINGS and PING
INITIAL_WINDOW_SIZE = 0x4  # identifier of a setting
SERVICE = "/isogloss.v1.EmbeddingService/"


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Returns a frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def grpc_message(message: bytes, *, length: int | None = None, compressed: bool = False) -> bytes:
    """Returns a message with the prefix of gRPC; `length` replaces the true length in it."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


def header_block(*pairs: tuple[bytes, bytes]) -> bytes:
    """Returns headers as literals without indexing (RFC 7541, 6.2.2)."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in pairs)


def _string(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, size = len(value) - 127, [127]
    while rest >= 128:
        size.append(rest % 128 + 128)
        rest //= 128
    return bytes([*size, rest]) + value


def call_headers(method: str, *more: tuple[bytes, bytes]) -> bytes:
    """Returns the request headers of a gRPC call."""
    return header_block(
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", (method if method.startswith("/") else SERVICE + method).encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    )


class RawCaller:
    """A connection that sends only the bytes it is given, and reads only on request."""

    def __init__(self, address: str, *, preface: bool = True) -> None:
        """Connects; `preface` sends the connection preface of HTTP/2."""
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        if preface:
            self.send(PREFACE + frame(SETTINGS))

    def send(self, data: bytes) -> None:
        """Sends bytes; ignores a connection that the server has closed."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def begin(self, method: str, *more: tuple[bytes, bytes], stream: int = 1, flags: int = END_HEADERS) -> None:
        """Begins a call."""
        self.send(frame(HEADERS, call_headers(method, *more), flags=flags, stream=stream))

    def data(self, part: bytes, *, stream: int = 1, flags: int = 0) -> None:
        """Sends a part of the messages of a call, in frames of at most 16 KiB."""
        for at in range(0, max(1, len(part)), 16_384):
            last = at + 16_384 >= len(part)
            self.send(frame(DATA, part[at : at + 16_384], flags=flags if last else 0, stream=stream))

    def half_close(self) -> None:
        """Closes the connection for writing; it can still be read."""
        with contextlib.suppress(OSError):  # the server has closed the connection
            self.socket.shutdown(socket.SHUT_WR)

    def read_to_end(self) -> bytes:
        """Returns all bytes of the server until it closes the connection."""
        received = b""
        try:
            while part := self.socket.recv(1 << 16):
                received += part
        except ConnectionResetError:
            pass
        return received

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (part := self.socket.recv(size - len(data))):
            data += part
        return data

    def wait_for(self, wanted: int, *, flags: int = 0, stream: int = 0) -> None:
        """Reads frames until one of a kind, with flags; fails if the stream is reset or the connection closed."""
        while head := self._read(9):
            payload = self._read(int.from_bytes(head[:3], "big"))
            kind, stream_id = head[3], int.from_bytes(head[5:], "big")
            if (kind, stream_id, head[4] & flags) == (wanted, stream, flags):
                return
            assert not (stream and stream_id == stream and kind == RST_STREAM), payload
        raise AssertionError("the server closed the connection")

    def wait_for_status(self, stream: int = 1) -> None:
        """Reads frames until the trailers of a stream; fails if the stream is reset or the connection closed."""
        self.wait_for(HEADERS, flags=END_STREAM, stream=stream)

    def reset(self) -> None:
        """Resets the connection, as if the process of the caller was killed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
