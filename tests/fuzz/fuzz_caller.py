"""Calls with any bytes, and what may become of them."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
from isogloss.v1 import embedding_pb2 as pb

from tests.fuzz.seeds import Method

DEADLINE_S = 60  # nothing takes so long but what hangs
# Whatever is asked, these are the answers: neither UNKNOWN, nor INTERNAL, nor a deadline.
EXPECTED = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
}
IN_STREAM = EXPECTED | {"DEADLINE_EXCEEDED"}  # a message of a stream may bring a timeout that has passed


class Caller:
    """One connection that sends bytes as requests; counts the answers by code."""

    def __init__(self, address: str) -> None:
        self.codes: Counter[str] = Counter()
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)])

    def call(self, method: Method, *requests: bytes) -> str:
        """Returns the code that a call with these requests ends with; only streams take more than one.

        Raises:
            AssertionError: it is none that may be.
        """
        told: str | None = ""
        try:
            if method.streams:
                self._stream(method, requests)
            else:
                self._channel.unary_unary(method.path)(requests[0], timeout=DEADLINE_S)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
            told = error.details()
        assert code in EXPECTED, (method.path, code, told, requests)
        self.codes[code] += 1
        return code

    def _stream(self, method: Method, requests: tuple[bytes, ...]) -> None:
        if method.path.endswith("Watch"):
            watch = self._channel.unary_stream(method.path)(requests[0], timeout=DEADLINE_S)
            next(watch)  # there is one at once, and then none until something changes
            watch.cancel()
            return
        call: Iterator[Any] = self._channel.stream_stream(method.path)(iter(requests), timeout=DEADLINE_S)
        for answer in call:
            if method.path.endswith("EmbedStream"):
                message = pb.EmbedStreamResponse.FromString(answer)
                code = grpc_code(message.error.code) if message.HasField("error") else "OK"
                assert code in IN_STREAM, (code, message.error.message, requests)
                self.codes[f"{code} in a stream"] += 1

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def grpc_code(number: int) -> str:
    """Returns the name of a status code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)
