"""What is said of the sizes of answers, before any work, is held against real messages."""

import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import ElementType
from isogloss_server.engine.pipeline import EmbedResult, Timings
from isogloss_server.engine.request import (
    NEIGHBOR_BYTES,
    RANKING_BYTES,
    ROW_ERROR_BYTES,
    ROW_OVERHEAD_BYTES,
    EmbedRequest,
    answer_bytes,
    default_max_texts,
    rankings_bytes,
)
from isogloss_server.engine.vectors import shape
from isogloss_server.errors import EmptyTextError, TextTooLongError, TextWithoutTokensError
from isogloss_server.models.interfaces import Embedded
from isogloss_server.rpc.codec import to_embed_response

GRPC_DEFAULT_BYTES = 4 * 1024 * 1024
ROOM_BYTES = 1000  # model, space, timings: once an answer
NO_TIME = Timings(total_s=1e6, tokenization_s=1e6, queue_s=1e6, inference_s=1e6, cached_rows=2**32 - 1)


def largest_response(rows: int, dimensions: int, element_type: ElementType, *, partial: bool) -> pb.EmbedResponse:
    """An answer of which every part is as large as it gets."""
    values = np.full((rows, dimensions), 3e38, np.float32)
    embedded = Embedded(
        rows=values, token_counts=np.full(rows, 32_768), truncated_rows=tuple(range(rows)), total_tokens=2**60
    )
    kinds = (EmptyTextError, TextWithoutTokensError, TextTooLongError)
    long = "the text has at least 99999999 tokens; the model reads 99999999"
    faults = {
        row: kinds[row % 3](long, actual=99_999_999, limit=99_999_999).at(EmbedRequest.path, row) for row in range(rows)
    }
    matrix = shape(values, dimensions, normalize=True, element_type=element_type)
    result = EmbedResult(
        matrix=matrix,
        model="m" * 100,
        space_id="s" * 40,
        embedded=embedded,
        faults=faults if partial else {},
        timings=NO_TIME,
    )
    return to_embed_response(result)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("element_type", list(ElementType))
def test_an_answer_is_no_larger_than_said(element_type: ElementType, partial: bool) -> None:
    """However its rows come out, an answer stays within the bytes that it was admitted with."""
    response = largest_response(3000, 16, element_type, partial=partial)
    assert response.ByteSize() <= answer_bytes(3000, 16, element_type, partial=partial) + ROOM_BYTES


@pytest.mark.parametrize("dimensions", [64, 256, 384, 1024])
def test_the_default_number_of_texts_fits_what_any_grpc_client_receives(dimensions: int) -> None:
    """As many texts as are announced by default fit 4 MiB as float32, even where every one of them fails."""
    response = largest_response(default_max_texts(dimensions), dimensions, ElementType.FLOAT32, partial=True)
    assert response.ByteSize() <= GRPC_DEFAULT_BYTES


@pytest.mark.parametrize(("queries", "neighbors"), [(10_000, 1), (100, 300), (3, 20_000)])
def test_rankings_are_no_larger_than_said(queries: int, neighbors: int) -> None:
    """Neighbours take no more than the bytes that they were admitted with."""
    response = pb.SimilarityResponse()
    for _ in range(queries):
        response.nearest.queries.add(rows=[2**32 - 1] * neighbors, scores=[0.5] * neighbors)
    assert response.ByteSize() <= rankings_bytes(queries, neighbors) + ROOM_BYTES


def test_the_client_counts_as_the_server_does() -> None:
    """Client and server, which share no code but the stubs, say the same of sizes."""
    from isogloss._arguments import Nearest
    from isogloss._embed import ROW_ERROR_BYTES as CLIENTS_ROW_ERROR_BYTES
    from isogloss._embed import ROW_OVERHEAD_BYTES as CLIENTS_ROW_OVERHEAD_BYTES

    assert CLIENTS_ROW_ERROR_BYTES == ROW_ERROR_BYTES
    assert CLIENTS_ROW_OVERHEAD_BYTES == ROW_OVERHEAD_BYTES
    assert Nearest(5, None).response_bytes(7, 100) == 7 * (RANKING_BYTES + 5 * NEIGHBOR_BYTES)
