"""A gRPC server whose responses break the contract on purpose: each method is a function of the test."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import numpy as np
from isogloss.testing._engine import Responder
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc as pb_grpc

from tests.support.fake import DIMENSIONS, MODEL, SPACE, fake_server, vectors

Method = Callable[[Any, Any], Any]


@contextlib.contextmanager
def lying_server(*, max_texts: int = 0, **methods: Method) -> Iterator[str]:
    """Runs a server with the given methods, such as Embed, and an honest ListModels; yields its address."""
    servicer = pb_grpc.EmbeddingServiceServicer()
    model = pb.ModelInfo(name=MODEL, space_id=SPACE, dimensions=[DIMENSIONS], max_texts=max_texts)
    honest: dict[str, Method] = {"ListModels": lambda _request, _context: pb.ListModelsResponse(models=[model])}
    for name, method in (honest | methods).items():
        setattr(servicer, name, method)
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def failing(code: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]]) -> Method:
    """Returns a method that fails with these trailers, which may contradict the status or be damaged."""

    def fail(_request: Any, context: Any) -> NoReturn:
        """Ends the call."""
        context.set_trailing_metadata(trailers)
        context.abort(code, message)
        raise AssertionError("abort never returns")

    return fail


def embed_response(texts: Sequence[str], *, space_id: str = SPACE) -> pb.EmbedResponse:
    """Returns a response with the vectors of `texts`, in a space of the test's choice."""
    rows = vectors(texts)
    # Without an element type, which the contract defines as FLOAT32.
    matrix = pb.Matrix(data=rows.astype(np.dtype("<f4")).tobytes(), rows=len(rows), columns=rows.shape[1])
    return pb.EmbedResponse(embeddings=matrix, model=MODEL, space_id=space_id)


def altered(method: str, change: Callable[[Any], Any]) -> dict[str, Method]:
    """Returns all methods with honest responses, except that `change` modifies each response of `method`."""
    settings, responder = fake_server(), Responder()
    compute = {
        "Embed": responder.embed,
        "Similarity": responder.compare,
        "Health": responder.health,
        "ListModels": responder.models,
    }

    def answer(name: str, request: Any) -> Any:
        """Returns the response to one request, changed if it is one of `method`."""
        response = compute[name](settings, request)
        if name == method:
            change(response)
        return response

    return {name: lambda request, _context, name=name: answer(name, request) for name in compute}
