"""Checked arguments -> requests."""

from collections.abc import Sequence

from google.protobuf import duration_pb2

from isogloss._arguments import AllPairs, CompareArguments, EmbedArguments, Nearest, Pairwise, Shape, TextSide
from isogloss._messages.matrix import to_matrix
from isogloss._messages.words import number
from isogloss.results import Vectors
from isogloss.v1 import embedding_pb2 as pb


def embed_request(arguments: EmbedArguments, texts: Sequence[str]) -> pb.EmbedRequest:
    """Returns the request for the vectors of `texts`."""
    return pb.EmbedRequest(
        texts=texts,
        model=arguments.model,
        input_type=number(arguments.input_type),
        dimensions=arguments.dimensions,
        element_type=number(arguments.element_type),
        truncation=number(arguments.truncation),
        normalize=arguments.normalize,
        priority=number(arguments.priority),
        allow_partial=arguments.allow_partial,
        space_id=arguments.space_id,
    )


def stream_request(
    number: int, arguments: EmbedArguments, texts: Sequence[str], timeout_s: float
) -> pb.EmbedStreamRequest:
    """Returns a request for the vectors of `texts` among others on a stream, to be answered within `timeout_s`."""
    timeout = duration_pb2.Duration()
    timeout.FromMicroseconds(round(timeout_s * 1e6))
    return pb.EmbedStreamRequest(id=number, request=embed_request(arguments, texts), timeout=timeout)


def similarity_request(
    arguments: CompareArguments, shape: Shape, queries: TextSide | Vectors, candidates: TextSide | Vectors | None
) -> pb.SimilarityRequest:
    """Returns the request that compares the sides; without candidates, the queries with themselves."""
    return pb.SimilarityRequest(
        queries=_items(queries),
        candidates=None if candidates is None else _items(candidates),
        model=arguments.model,
        metric=number(arguments.metric),
        dimensions=arguments.dimensions,
        truncation=number(arguments.truncation),
        priority=number(arguments.priority),
        all_pairs=pb.AllPairs() if isinstance(shape, AllPairs) else None,
        pairwise=pb.Pairwise() if isinstance(shape, Pairwise) else None,
        nearest=pb.Nearest(k=shape.k, min_score=shape.min_score) if isinstance(shape, Nearest) else None,
    )


def health_request(model: str) -> pb.HealthRequest:
    """Returns the request for the health of `model`, or of the whole server where it is empty."""
    return pb.HealthRequest(model=model)


def models_request() -> pb.ListModelsRequest:
    """Returns the request for what the server offers."""
    return pb.ListModelsRequest()


def _items(side: TextSide | Vectors) -> pb.Items:
    if isinstance(side, Vectors):
        return pb.Items(vectors=pb.VectorList(vectors=to_matrix(side.array), space_id=side.space_id))
    return pb.Items(texts=pb.TextList(texts=side.texts, input_type=number(side.input_type)))
