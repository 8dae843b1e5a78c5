"""The cache over gRPC: equal responses, and the number of cached rows."""

import itertools
from typing import Any

import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import Cache

from tests.support.cached_embedder import CARD, UniqueRowsEmbedder
from tests.support.in_process import ready_registry, serving
from tests.support.wire import texts

TYPES = [number for name, number in pb.ElementType.items() if number]


def make_cache() -> Cache:
    return Cache(SystemClock(), max_bytes=1 << 20)


async def test_one_entry_serves_every_element_type_and_dimension() -> None:
    """A text is computed once for all element types, dimensions and normalizations; equal requests get equal bytes."""
    embedder: Any = UniqueRowsEmbedder()
    async with serving(ready_registry(embedder), cache=make_cache()) as stub:
        responses: dict[Any, pb.EmbedResponse] = {}
        for _ in range(2):
            for shape in itertools.product(TYPES, CARD.dimensions, (True, False)):
                request = pb.EmbedRequest(texts=["one", "a truncated text"])
                request.element_type, request.dimensions, request.normalize = shape
                response = await stub.Embed(request)
                first = responses.setdefault(shape, response)
                assert response.embeddings == first.embeddings
                assert (list(response.token_counts), list(response.truncated_rows), response.total_tokens) == (
                    [3, 10],
                    [1],
                    13,
                )
    assert len(embedder.calls) == 1


async def test_cached_rows_counts_the_rows_without_inference() -> None:
    """The timings of Embed, EmbedStream and Similarity have the number of rows that were not computed."""
    embedder: Any = UniqueRowsEmbedder()
    async with serving(ready_registry(embedder), cache=make_cache()) as stub:
        first = await stub.Embed(pb.EmbedRequest(texts=["a", "b"]))
        second = await stub.Embed(pb.EmbedRequest(texts=["b", "c", "c"]))
        compared = await stub.Similarity(pb.SimilarityRequest(queries=texts("a", "d"), candidates=texts("a", "b", "d")))
        stream = stub.EmbedStream(iter([pb.EmbedStreamRequest(id=1, request=pb.EmbedRequest(texts=["a", "e"]))]))
        streamed = [response async for response in stream]
        model = (await stub.Health(pb.HealthRequest())).models[0]
    rows = [response.timings.cached_rows for response in (first, second, compared, streamed[0].response)]
    assert rows == [0, 2, 4, 1]
    assert embedder.calls == [["a", "b"], ["c"], ["d"], ["e"]]
    assert model.embedded_texts == 2 + 3 + 5 + 2


async def test_a_partial_request_uses_and_fills_the_cache() -> None:
    """The valid texts of a request with row errors are read from the cache and stored; the errors are not."""
    embedder: Any = UniqueRowsEmbedder()
    async with serving(ready_registry(embedder), cache=make_cache()) as stub:
        known = await stub.Embed(pb.EmbedRequest(texts=["known"]))
        request = pb.EmbedRequest(texts=["", "known", "!!!", "new"], allow_partial=True)
        first, again = await stub.Embed(request), await stub.Embed(request)
        full = await stub.Embed(pb.EmbedRequest(texts=["new", "known"]))
    assert [error.row for error in again.row_errors] == [error.row for error in first.row_errors] == [0, 2]
    assert first.embeddings.data == again.embeddings.data
    assert known.embeddings.data in full.embeddings.data
    assert (first.timings.cached_rows, again.timings.cached_rows, full.timings.cached_rows) == (1, 2, 2)


@pytest.mark.parametrize("cache", [None, Cache(SystemClock(), max_bytes=0)])
async def test_without_a_cache_every_row_is_computed(cache: Cache | None) -> None:
    """If the cache is off, a repeated text is computed again."""
    embedder: Any = UniqueRowsEmbedder()
    async with serving(ready_registry(embedder), cache=cache) as stub:
        for _ in range(2):
            assert (await stub.Embed(pb.EmbedRequest(texts=["a"]))).timings.cached_rows == 0
    assert len(embedder.calls) == 2
