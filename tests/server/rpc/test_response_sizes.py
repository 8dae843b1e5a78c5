"""The predicted sizes of responses are upper bounds of the sizes of real messages."""

import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import ElementType
from isogloss.wire.matrix import encode, quantize, to_elements
from isogloss.wire.sizes import embed_response_bytes, rankings_bytes, scores_bytes
from isogloss_server.engine.pipeline import EmbedResult, Timings
from isogloss_server.engine.request import EmbedRequest, default_max_texts
from isogloss_server.errors import EmptyTextError, TextTooLongError, TextWithoutTokensError
from isogloss_server.models.interfaces import Embedded
from isogloss_server.rpc.codec import to_embed_response

GRPC_DEFAULT_BYTES = 4 * 1024 * 1024
ROOM_BYTES = 1000  # model, space and timings of a response
NO_TIME = Timings(total_s=1e6, tokenization_s=1e6, queue_s=1e6, inference_s=1e6, cached_rows=2**32 - 1)


def largest_response(rows: int, dimensions: int, element_type: ElementType, *, partial: bool) -> pb.EmbedResponse:
    """Returns a response whose every part has its maximum size."""
    values = np.full((rows, dimensions), 3e38, np.float32)
    kinds = (EmptyTextError, TextWithoutTokensError, TextTooLongError)
    long = "the text has at least 99999999 tokens; the model reads 99999999"
    row_errors = {
        row: kinds[row % 3](long, actual=99_999_999, limit=99_999_999).at(EmbedRequest.path, row) for row in range(rows)
    }
    embedded = Embedded(
        rows=values,
        token_counts=np.full(rows, 32_768),
        truncated_rows=tuple(range(rows)),
        row_errors=row_errors if partial else {},
        total_tokens=2**60,
    )
    matrix = to_elements(values, dimensions, normalize=True, element_type=element_type)
    result = EmbedResult(
        matrix=matrix,
        model="m" * 100,
        space_id="s" * 40,
        embedded=embedded,
        timings=NO_TIME,
    )
    return to_embed_response(result)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("element_type", list(ElementType))
def test_a_response_does_not_exceed_its_predicted_size(element_type: ElementType, partial: bool) -> None:
    """A response stays within the size that it is admitted with, also if every row is truncated or fails."""
    response = largest_response(3000, 16, element_type, partial=partial)
    assert response.ByteSize() <= embed_response_bytes(3000, 16, element_type, allow_partial=partial) + ROOM_BYTES


@pytest.mark.parametrize("dimensions", [64, 256, 384, 1024])
def test_the_default_number_of_texts_fits_what_any_grpc_client_receives(dimensions: int) -> None:
    """The default number of texts fits 4 MiB as float32, also if every text fails."""
    response = largest_response(default_max_texts(dimensions), dimensions, ElementType.FLOAT32, partial=True)
    assert response.ByteSize() <= GRPC_DEFAULT_BYTES


@pytest.mark.parametrize(("queries", "neighbors"), [(10_000, 1), (100, 300), (3, 20_000)])
def test_rankings_do_not_exceed_their_predicted_size(queries: int, neighbors: int) -> None:
    """Neighbors stay within the size that they are admitted with."""
    response = pb.SimilarityResponse()
    for _ in range(queries):
        response.nearest.queries.add(rows=[2**32 - 1] * neighbors, scores=[0.5] * neighbors)
    assert response.ByteSize() <= rankings_bytes(queries, neighbors) + ROOM_BYTES


def test_scores_have_the_predicted_size() -> None:
    """The data of a matrix of scores has the size that a comparison is admitted with."""
    response = pb.SimilarityResponse()
    encode(quantize(np.ones((7, 100), np.float32), ElementType.FLOAT32), response.scores)
    assert len(response.scores.data) == scores_bytes(700)
