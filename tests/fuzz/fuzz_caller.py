"""Sends arbitrary bytes as requests, and checks the status codes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from isogloss.v1 import embedding_pb2 as pb

from tests.fuzz.seeds import Method

DEADLINE_S = 60  # only a stalled call takes as long
# For any request: not UNKNOWN, INTERNAL or DEADLINE_EXCEEDED.
EXPECTED = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
}
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}  # on a server with keys
IN_STREAM = EXPECTED | {"DEADLINE_EXCEEDED"}  # a message of a stream may have an expired timeout

Metadata = Sequence[tuple[str, str | bytes]]


class Caller:
    """Sends bytes as requests over one connection, and counts the responses by code."""

    def __init__(self, address: str, *, keys: bool = False) -> None:
        """Takes `keys`, True if the server has keys."""
        self._expected = EXPECTED | REFUSED if keys else EXPECTED
        self._in_stream = IN_STREAM | REFUSED if keys else IN_STREAM
        self.codes: Counter[str] = Counter()
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)])

    def call(self, method: Method, *requests: bytes, metadata: Metadata = ()) -> str:
        """Returns the status code of a call with these requests; only streams take several.

        Raises:
            AssertionError: the code is not expected.
        """
        details: str | None = ""
        try:
            if method.streams:
                self._stream(method, requests, metadata)
            else:
                self._channel.unary_unary(method.path)(requests[0], timeout=DEADLINE_S, metadata=metadata)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
            details = error.details()
        assert code in self._expected, (method.path, code, details, requests)
        self.codes[code] += 1
        return code

    def _stream(self, method: Method, requests: tuple[bytes, ...], metadata: Metadata) -> None:
        if method.path.endswith("Watch"):
            watch = self._channel.unary_stream(method.path)(requests[0], timeout=DEADLINE_S, metadata=metadata)
            next(watch)  # the first response is immediate, later ones follow changes
            watch.cancel()
            return
        call: Iterator[Any] = self._channel.stream_stream(method.path)(
            iter(requests), timeout=DEADLINE_S, metadata=metadata
        )
        for response in call:
            if method.path.endswith("EmbedStream"):
                message = pb.EmbedStreamResponse.FromString(response)
                code = grpc_code(message.error.code) if message.HasField("error") else "OK"
                assert code in self._in_stream, (code, message.error.message, requests)
                self.codes[f"{code} in a stream"] += 1

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()


def grpc_code(number: int) -> str:
    """Returns the name of a status code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)
