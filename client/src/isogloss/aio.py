"""The asyncio client: the same names and arguments as the blocking one, to be awaited."""

from collections.abc import AsyncGenerator

from isogloss import _arguments as given
from isogloss import _plans
from isogloss._asyncio import AsyncioClient
from isogloss.results import EmbeddedChunk, Embeddings, HealthReport, ModelInfo, Neighbors, PairScores, Scores


class AsyncClient(AsyncioClient):
    """Embeds and compares texts on an Isogloss server, from one event loop: the one that its first call runs in.

    Arguments, results and errors are those of Client, where they are described. Cancelling a call cancels it on the
    server as well, and raises asyncio.CancelledError as everywhere.

    Args:
        target: Where the server listens, such as "localhost:50051"; goes before the options' target.
        options: All else about the connection.
    """

    async def embed(
        self,
        texts: given.GivenTexts,
        *,
        model: str = "",
        input_type: str = "similarity",
        dimensions: int = 0,
        element_type: str = "float32",
        truncation: str | None = None,
        normalize: bool = True,
        priority: str = "interactive",
        allow_partial: bool = False,
        space_id: str = "",
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Returns one vector for each text, in order; as Client.embed."""
        arguments = given.embed_arguments(
            model=model,
            input_type=input_type,
            dimensions=dimensions,
            element_type=element_type,
            truncation=truncation,
            normalize=normalize,
            priority=priority,
            allow_partial=allow_partial,
            space_id=space_id,
        )
        side = given.texts("texts", texts, arguments.input_type)
        return await self._run(_plans.embed(self._known, arguments, side), timeout_s)

    def embed_many(
        self,
        texts: given.AnyTexts,
        *,
        model: str = "",
        input_type: str = "similarity",
        dimensions: int = 0,
        element_type: str = "float32",
        truncation: str | None = None,
        normalize: bool = True,
        allow_partial: bool = False,
        space_id: str = "",
        chunk_texts: int = 256,
        window_chunks: int = 8,
        patience_s: float = 60.0,
    ) -> AsyncGenerator[EmbeddedChunk, None]:
        """Yields the vectors of any number of texts, in order; as Client.embed_many.

        `texts` may be asynchronous as well. Where the iteration is left before its end, contextlib.aclosing ends the
        stream at once.
        """
        arguments = given.embed_arguments(
            model=model,
            input_type=input_type,
            dimensions=dimensions,
            element_type=element_type,
            truncation=truncation,
            normalize=normalize,
            priority="bulk",
            allow_partial=allow_partial,
            space_id=space_id,
        )
        bulk = given.bulk_arguments(chunk_texts=chunk_texts, window_chunks=window_chunks, patience_s=patience_s)
        return self._run_many(arguments, bulk, texts)

    async def similarity(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide | None = None,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Scores:
        """Returns the score of every query against every candidate, float32 [q, c]; as Client.similarity."""
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.sides(queries, candidates, query_type, candidate_type)
        return await self._run(_plans.similarity(self._known, arguments, sides), timeout_s)

    async def pairwise(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> PairScores:
        """Returns the score of query i against candidate i, float32 [n]; as Client.pairwise."""
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return await self._run(_plans.pairwise(self._known, arguments, sides), timeout_s)

    async def nearest(
        self,
        query: str,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Neighbors:
        """Returns the candidates nearest to one query, best first, ties by lower row; as Client.nearest."""
        [neighbors] = await self.nearest_many(
            [given.string("query", query)],
            candidates,
            k=k,
            min_score=min_score,
            model=model,
            metric=metric,
            dimensions=dimensions,
            query_type=query_type,
            candidate_type=candidate_type,
            truncation=truncation,
            priority=priority,
            timeout_s=timeout_s,
        )
        return neighbors

    async def nearest_many(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> list[Neighbors]:
        """Returns for each query the candidates nearest to it, best first; as Client.nearest_many."""
        shape = given.nearest_shape(k, min_score)
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return await self._run(_plans.nearest(self._known, arguments, shape, sides), timeout_s)

    async def health(self, model: str = "", *, timeout_s: float | None = None) -> HealthReport:
        """Returns whether the server, or `model` alone, can serve now, and how loaded it is."""
        return await self._run(_plans.health(given.string("model", model)), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Returns the models that the server offers, the default first."""
        return await self._run(_plans.models(), timeout_s)
