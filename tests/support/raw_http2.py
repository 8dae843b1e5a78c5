"""HTTP/2 byte by byte, for callers that no gRPC library would let one be."""

import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 0x1, 0x4
INITIAL_WINDOW_SIZE = 0x4  # a setting
SERVICE = "/isogloss.v1.EmbeddingService/"


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Returns a frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def grpc_message(message: bytes, *, length: int | None = None, compressed: bool = False) -> bytes:
    """Returns a message as gRPC frames it, or one that says a length which is not its own."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


def header_block(*pairs: tuple[bytes, bytes]) -> bytes:
    """Returns headers as literals that nothing is indexed of (RFC 7541, 6.2.2)."""
    return b"".join(b"\x00" + _word(name) + _word(value) for name, value in pairs)


def _word(word: bytes) -> bytes:
    if len(word) < 127:
        return bytes([len(word)]) + word
    rest, size = len(word) - 127, [127]
    while rest >= 128:
        size.append(rest % 128 + 128)
        rest //= 128
    return bytes([*size, rest]) + word


def call_headers(method: str, *more: tuple[bytes, bytes]) -> bytes:
    """Returns the headers that begin a gRPC call."""
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
    """A connection that says what it is told to, and reads nothing unless asked."""

    def __init__(self, address: str, *, greet: bool = True) -> None:
        """Connects; `greet` sends what HTTP/2 begins with."""
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        if greet:
            self.send(PREFACE + frame(SETTINGS))

    def send(self, said: bytes) -> None:
        """Sends bytes; a server that has hung up is no error."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(said)

    def begin(self, method: str, *more: tuple[bytes, bytes], stream: int = 1, flags: int = END_HEADERS) -> None:
        """Begins a call."""
        self.send(frame(HEADERS, call_headers(method, *more), flags=flags, stream=stream))

    def data(self, part: bytes, *, stream: int = 1, flags: int = 0) -> None:
        """Sends a part of a call's messages, in frames of 16 KiB at most."""
        for at in range(0, max(1, len(part)), 16_384):
            last = at + 16_384 >= len(part)
            self.send(frame(DATA, part[at : at + 16_384], flags=flags if last else 0, stream=stream))

    def end_saying(self) -> None:
        """Says that nothing more will be said; the answers may still come."""
        with contextlib.suppress(OSError):  # the server has hung up already
            self.socket.shutdown(socket.SHUT_WR)

    def read_to_end(self) -> bytes:
        """Returns all that the server says until it hangs up."""
        said = b""
        try:
            while part := self.socket.recv(1 << 16):
                said += part
        except ConnectionResetError:
            pass
        return said

    def until_ended(self, stream: int = 1) -> None:
        """Reads frames until one ends a stream with a status, or breaks it off."""
        said = self.socket.makefile("rb")
        while head := said.read(9):
            payload = said.read(int.from_bytes(head[:3], "big"))
            kind, flags, of = head[3], head[4], int.from_bytes(head[5:], "big")
            assert not (of == stream and kind == RST_STREAM), payload
            if of == stream and kind == HEADERS and flags & END_STREAM:
                return
        raise AssertionError("the server hung up")

    def vanish(self) -> None:
        """Ends the connection with a reset, as where a process was killed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
