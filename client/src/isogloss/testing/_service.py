"""The contract's service on the wire: records each request, does as the script says, then answers."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from isogloss._failures import REQUEST_ID_TRAILER
from isogloss.errors import IsoglossError
from isogloss.testing._answers import Answers
from isogloss.testing._compare import compare
from isogloss.testing._errors import abort
from isogloss.testing._script import Script
from isogloss.testing._settings import Settings
from isogloss.testing._stream import Stream
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceServicer

Request = TypeVar("Request")
Response = TypeVar("Response")


class Service(EmbeddingServiceServicer):
    """One method for each RPC."""

    def __init__(self, settings: Settings, script: Script) -> None:
        self._settings = settings
        self._script = script
        self._answers = Answers(settings)

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802 - the contract's name
        """Texts to one row vector each."""
        return self._answer("Embed", request, context, self._answers.embed)

    def EmbedStream(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> Iterator[pb.EmbedStreamResponse]:
        """Embed, many at a time on one stream. Each message is an Embed to gates and faults as well."""
        trailers = _trailers(context)

        def arrive(message: pb.EmbedStreamRequest) -> None:
            """Takes a message down, and ends the stream where that was planned."""
            self._script.record("EmbedStream", message, context)
            self._script.act("EmbedStream", context)

        def answer(message: pb.EmbedStreamRequest) -> pb.EmbedResponse:
            """Returns the vectors of a message, within its own time."""
            timeout_s = message.timeout.ToNanoseconds() / 1e9 if message.HasField("timeout") else None
            self._script.act("Embed", context, timeout_s)
            return self._answers.embed(message.request)

        try:
            yield from Stream(request_iterator, context, arrive, answer).responses()
        except IsoglossError as error:
            abort(context, error, trailers)

    def Similarity(self, request: pb.SimilarityRequest, context: Any) -> pb.SimilarityResponse:  # noqa: N802
        """Scores of queries against candidates."""
        return self._answer("Similarity", request, context, lambda r: compare(self._settings, self._answers, r))

    def Health(self, request: pb.HealthRequest, context: Any) -> pb.HealthResponse:  # noqa: N802
        """How the model fares."""
        return self._answer("Health", request, context, self._answers.health)

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """What the model is."""
        return self._answer("ListModels", request, context, self._answers.models)

    def _answer(self, method: str, request: Request, context: Any, answer: Callable[[Request], Response]) -> Response:
        trailers = _trailers(context)
        try:
            self._script.record(method, request, context)
            self._script.act(method, context)
            return answer(request)
        except IsoglossError as error:
            abort(context, error, trailers)


def _trailers(context: Any) -> tuple[tuple[str, str], ...]:
    """Returns the trailers of every call, and sets them for one that succeeds."""
    given = {key: value for key, value in context.invocation_metadata()}  # noqa: C416 - pairs of grpc's own kind
    trailers = ((REQUEST_ID_TRAILER, given.get(REQUEST_ID_TRAILER) or uuid.uuid4().hex),)
    context.set_trailing_metadata(trailers)
    return trailers
