"""Pipeline: the path of one request. Check, admission, cache, embedder, then the shape of the response.

Read `embed` to understand the service.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from isogloss.wire.matrix import Elements, to_elements, unit_length

from isogloss_server.clock import Clock
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.executor import INLINE_NUMBERS, Executor
from isogloss_server.engine.registry import Registry, ServedModel
from isogloss_server.engine.request import (
    EmbedRequest,
    Nearest,
    Pairwise,
    SimilarityRequest,
    TextSide,
    VectorSide,
    find_empty_texts,
    resolve_truncation,
)
from isogloss_server.engine.similarity import Comparison, Rankings, pairwise
from isogloss_server.errors import merge_row_errors
from isogloss_server.models.interfaces import Embedded, Embedder, ModelCard, Rows, Urgency


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that one request took, in total and by stage, and the number of rows from the cache."""

    total_s: float
    tokenization_s: float
    queue_s: float
    inference_s: float
    cached_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """Result of an EmbedRequest: the shaped matrix, and the embedder's data; rows with an error are zeros."""

    matrix: Elements
    model: str
    space_id: str
    embedded: Embedded
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityResult:
    """Result of a SimilarityRequest: scores float32 [q, c], or [1, n] if pairwise, or rankings."""

    compared: Rows | Rankings
    model: str
    space_id: str
    truncated_queries: Sequence[int]
    truncated_candidates: Sequence[int]
    total_tokens: int
    timings: Timings


class Pipeline:
    """Processes the requests of every interface."""

    def __init__(self, registry: Registry, executor: Executor, clock: Clock, cache: Cache | None = None) -> None:
        """Creates a pipeline; without `cache`, it stores no rows and computes equal texts in flight separately."""
        self._registry = registry
        self._executor = executor
        self._clock = clock
        self._cache = cache or Cache(clock, max_bytes=0)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Returns the vectors of the texts, [n, columns] in the requested element type.

        Raises:
            DomainError: The request is invalid or was not admitted, a text failed without `allow_partial`, or the model
                failed; see errors.py.
        """
        began_s = self._clock.monotonic_s()
        model = self._registry.get(request.model)
        ready = model.ready
        card, side = ready.embedder.card, request.sides[0]
        columns = request.check(card, ready.limits)
        async with ready.admission.admit(request, partial(self._is_cached, card, request)) as slot:
            embedded = await self._embed(model, ready.embedder, side, request, allow_partial=request.allow_partial)
            if not request.allow_partial:
                _require_no_row_errors(embedded, side)
            slot.record(embedded)
            matrix = await self._executor.run_if_large(
                embedded.rows.size,
                INLINE_NUMBERS,
                to_elements,
                embedded.rows,
                columns,
                normalize=request.normalize,
                element_type=request.element_type,
            )
        return EmbedResult(
            matrix=matrix,
            model=model.name,
            space_id=card.space_id,
            embedded=embedded,
            timings=self._timings(began_s, slot.waited_s, [embedded]),
        )

    async def similarity(self, request: SimilarityRequest) -> SimilarityResult:
        """Returns the scores of the queries against the candidates, or each query's nearest candidates.

        Raises:
            DomainError: The request is invalid or was not admitted, a text or the model failed; see errors.py.
        """
        began_s = self._clock.monotonic_s()
        model = self._registry.get(request.model)
        ready = model.ready
        columns = request.check(ready.embedder.card, ready.limits)
        async with ready.admission.admit(request, partial(self._is_cached, ready.embedder.card, request)) as slot:
            embedded = await self._embed_sides(model, ready.embedder, request)
            rows = [
                await self._comparable(side, part.rows, columns)
                for side, part in zip(request.sides, embedded, strict=True)
            ]
            compared = await self._compare(request, rows[0], rows[-1])
            for side, part in zip(request.sides, embedded, strict=True):
                if isinstance(side, TextSide):
                    slot.record(part)
        return SimilarityResult(
            compared=compared,
            model=model.name,
            space_id=ready.embedder.card.space_id,
            truncated_queries=embedded[0].truncated_rows,
            truncated_candidates=embedded[-1].truncated_rows,
            total_tokens=sum(part.total_tokens for part in embedded),
            timings=self._timings(began_s, slot.waited_s, embedded),
        )

    async def _embed_sides(self, model: ServedModel, embedder: Embedder, request: SimilarityRequest) -> list[Embedded]:
        """Returns the embeddings of both sides, or of the only one; embeds the texts of two sides concurrently."""
        texts = [side for side in request.sides if isinstance(side, TextSide)]
        if len(texts) < len(request.sides) or len(texts) == 1:
            embedded = [
                await self._embed(model, embedder, side, request)
                if isinstance(side, TextSide)
                else Embedded(rows=side.rows, token_counts=None)
                for side in request.sides
            ]
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._embed(model, embedder, side, request)) for side in texts]
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
            embedded = [task.result() for task in tasks]
        for side, part in zip(request.sides, embedded, strict=True):
            _require_no_row_errors(part, side)
        return embedded

    async def _comparable(self, side: TextSide | VectorSide, rows: Rows, columns: int) -> Rows:
        """Returns float32 [n, columns]: rows of texts at unit length, vectors as they were sent."""
        if isinstance(side, VectorSide):
            return rows
        return await self._executor.run_if_large(rows.size, INLINE_NUMBERS, lambda: unit_length(rows[:, :columns]))

    async def _compare(self, request: SimilarityRequest, queries: Rows, candidates: Rows) -> Rows | Rankings:
        """Compares block by block, so that a cancelled request ends with its current block."""
        run, metric = self._executor.run_if_large, request.metric
        if isinstance(request.shape, Pairwise):
            return await run(queries.size, INLINE_NUMBERS, lambda: pairwise(queries, candidates, metric)[None])
        size = len(queries) * candidates.size
        comparison = await run(size, INLINE_NUMBERS, Comparison, candidates, metric)
        blocks = [queries[block] for block in comparison.blocks(queries)]
        if isinstance(request.shape, Nearest):
            nearest = partial(comparison.nearest, k=request.shape.k, min_score=request.shape.min_score)
            return Rankings.joined([await run(size, INLINE_NUMBERS, nearest, block) for block in blocks])
        return np.concatenate([await run(size, INLINE_NUMBERS, comparison.scores, block) for block in blocks])

    async def _embed(
        self,
        model: ServedModel,
        embedder: Embedder,
        side: TextSide,
        request: EmbedRequest | SimilarityRequest,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        """Returns one row for each text; a text that cannot be embedded has zeros and a row error.

        Unless `allow_partial`, the other rows are undefined once a text has an error.
        """
        truncation = resolve_truncation(request, embedder.card)
        empty = find_empty_texts(side.texts)
        rows = [row for row in range(len(side.texts)) if row not in empty] if empty else []
        if empty and not (allow_partial and rows):
            return Embedded.failed(len(side.texts), embedder.card.dimensions[0], empty)
        embedded = await self._cache.embed(
            embedder,
            [side.texts[row] for row in rows] if empty else side.texts,
            side.input_type,
            truncation,
            Urgency(request.priority, request.deadline_s),
            allow_partial=allow_partial,
        )
        if allow_partial or not embedded.row_errors:  # else the rows are undefined
            model.embedded_texts += len(embedded.rows) - len(embedded.row_errors)
        return embedded.spread(rows, len(side.texts), empty) if empty else embedded

    def _is_cached(self, card: ModelCard, request: EmbedRequest | SimilarityRequest) -> bool:
        """Returns whether all texts of a request are cached; it must have some."""
        texts = [side for side in request.sides if isinstance(side, TextSide)]
        truncation = resolve_truncation(request, card)
        return bool(texts) and all(self._cache.has(card, side.texts, side.input_type, truncation) for side in texts)

    def _timings(self, began_s: float, waited_s: float, embedded: Sequence[Embedded]) -> Timings:
        """Returns the timings; of sides that were embedded concurrently, the longest of each stage."""
        return Timings(
            total_s=self._clock.monotonic_s() - began_s,
            tokenization_s=max(part.tokenization_s for part in embedded),
            queue_s=waited_s + max(part.queue_s for part in embedded),
            inference_s=max(part.inference_s for part in embedded),
            cached_rows=sum(part.cached_rows for part in embedded),
        )


def _require_no_row_errors(embedded: Embedded, side: TextSide | VectorSide) -> None:
    """Raises the first row error, with the violations of all that have the same reason."""
    if embedded.row_errors:
        raise merge_row_errors(side.path, embedded.row_errors)
