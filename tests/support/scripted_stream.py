"""EmbedStream of the scripted server: each request is answered as Embed would answer it, in a manner that tests choose.

A manner is a generator: from the requests of one stream and a function that answers one of them, to the answers.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc
from google.rpc import status_pb2
from isogloss.v1 import embedding_pb2 as pb

Answer = Callable[[Any], Any]
Manner = Callable[[Iterator[Any], Answer, Any], Iterator[Any]]


class Refusal(Exception):  # noqa: N818 - no failure of the test
    """A request that failed by itself."""


class OneRequest:
    """Stands in for the context of a call, for one request of a stream."""

    def __init__(self, context: Any, timeout_s: float) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._trailers: dict[str, Any] = {}

    def invocation_metadata(self) -> Any:
        """The stream's."""
        return self._context.invocation_metadata()

    def time_remaining(self) -> float:
        """The request's own timeout."""
        return self._timeout_s

    def set_trailing_metadata(self, trailers: Any) -> None:
        """Keeps them for abort."""
        self._trailers = dict(trailers)

    def abort(self, code: grpc.StatusCode, message: str) -> NoReturn:
        """Ends the request, and not the stream."""
        status = status_pb2.Status.FromString(self._trailers.get("grpc-status-details-bin", b""))
        status.code, status.message = code.value[0], message
        raise Refusal(status)


def answered(embed: Callable[[Any, Any], Any], context: Any) -> Answer:
    """Returns what answers one request of the stream with `embed`."""

    def answer(message: Any) -> Any:
        """The response, or the error of this request alone."""
        timeout_s = message.timeout.ToNanoseconds() / 1e9
        try:
            return pb.EmbedStreamResponse(
                id=message.id, response=embed(message.request, OneRequest(context, timeout_s))
            )
        except Refusal as refused:
            return pb.EmbedStreamResponse(id=message.id, error=refused.args[0])

    return answer


def in_order(requests: Iterator[Any], answer: Answer, _context: Any) -> Iterator[Any]:
    """Answers one request after another."""
    return map(answer, requests)


def pairs_swapped(requests: Iterator[Any], answer: Answer, _context: Any) -> Iterator[Any]:
    """Answers the second of two requests before the first."""
    for first in requests:
        second = next(requests, None)
        if second is not None:
            yield answer(second)
        yield answer(first)


def ends_after(answers: int, fault: Any) -> Manner:
    """Answers so many requests, reads another one, and ends the stream with `fault`."""

    def manner(requests: Iterator[Any], answer: Answer, context: Any) -> Iterator[Any]:
        """Answers some."""
        for number, request in enumerate(requests):
            if number == answers:
                fault.abort(context)
            yield answer(request)

    return manner
