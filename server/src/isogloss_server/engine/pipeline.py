"""Pipeline: the path of one request. Check, admission, cache, embedder, then the shape of the response.

Read `embed` to understand the service.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from isogloss.wire.matrix import Elements, to_elements, unit_length

from isogloss_server import tracing
from isogloss_server.clock import Clock
from isogloss_server.engine.admission import Slot
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.executor import COMPARISON_PRODUCTS, INLINE_NUMBERS, Executor
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
from isogloss_server.engine.similarity import BLOCK_PAIRS, Comparison, Rankings, pairwise
from isogloss_server.errors import merge_row_errors
from isogloss_server.fair_queue import CURRENT_CALLER, FairSemaphore
from isogloss_server.models.interfaces import Embedded, Embedder, ModelCard, Rows, Urgency

BLOCK_S = 0.010  # of a comparison: work of others waits for a block at most

Part = TypeVar("Part")


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

    def __init__(
        self,
        registry: Registry,
        executor: Executor,
        clock: Clock,
        cache: Cache | None = None,
    ) -> None:
        """Creates a pipeline.

        Args:
            registry: The served models.
            executor: The threads.
            clock: The clock.
            cache: Stores rows; None stores none.
        """
        self._registry = registry
        self._comparisons = executor.comparisons
        self._comparing = FairSemaphore(self._comparisons.lanes)
        self._executor = executor
        self._clock = clock
        self._cache = cache or Cache(clock, max_bytes=0)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Returns the vectors of the texts, [n, columns] in the requested element type.

        Raises:
            DomainError: The request is invalid or was not admitted, a text failed without `allow_partial`, or the model
                failed; see errors.py.
        """
        CURRENT_CALLER.set(request.caller)
        began_s = self._clock.monotonic_s()
        model = self._registry.get(request.model)
        ready = model.ready
        card, side = ready.embedder.card, request.sides[0]
        columns = request.check(card, ready.limits)
        async with ready.admission.admit(request, partial(self._is_cached, card, request)) as slot:
            embedded = await self._embed(
                model, ready.embedder, side, request, slot, allow_partial=request.allow_partial
            )
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
            timings=self._timings(model, request, began_s, slot.waited_s, [embedded]),
        )

    async def similarity(self, request: SimilarityRequest) -> SimilarityResult:
        """Returns the scores of the queries against the candidates, or each query's nearest candidates.

        Raises:
            DomainError: The request is invalid or was not admitted, a text or the model failed; see errors.py.
        """
        CURRENT_CALLER.set(request.caller)
        began_s = self._clock.monotonic_s()
        model = self._registry.get(request.model)
        ready = model.ready
        columns = request.check(ready.embedder.card, ready.limits)
        async with ready.admission.admit(request, partial(self._is_cached, ready.embedder.card, request)) as slot:
            embedded = await self._embed_sides(model, ready.embedder, request, slot)
            rows = [
                await self._comparable(side, part.rows, columns)
                for side, part in zip(request.sides, embedded, strict=True)
            ]
            with tracing.timed("comparison", self._clock):
                compared = await self._compare(request, rows[0], rows[-1], slot.size.products)
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
            timings=self._timings(model, request, began_s, slot.waited_s, embedded),
        )

    async def _embed_sides(
        self, model: ServedModel, embedder: Embedder, request: SimilarityRequest, slot: Slot
    ) -> list[Embedded]:
        """Returns the embeddings of both sides, or of the only one; embeds the texts of two sides concurrently."""
        texts = [side for side in request.sides if isinstance(side, TextSide)]
        if len(texts) < len(request.sides) or len(texts) == 1:
            embedded = [
                await self._embed(model, embedder, side, request, slot)
                if isinstance(side, TextSide)
                else Embedded(rows=side.rows, token_counts=None)
                for side in request.sides
            ]
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._embed(model, embedder, side, request, slot)) for side in texts]
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

    async def _compare(
        self, request: SimilarityRequest, queries: Rows, candidates: Rows, products: int
    ) -> Rows | Rankings:
        """Compares block by block, so that other work passes between blocks, and a cancelled request ends."""
        if isinstance(request.shape, Pairwise):
            parts = await self._in_blocks(
                len(queries),
                products,
                max(1, BLOCK_PAIRS // queries.shape[1]),
                lambda block: pairwise(queries[block], candidates[block], request.metric)[None],
            )
            return np.concatenate(parts, axis=1)
        comparison = await self._executor.run_if_large(
            candidates.size, INLINE_NUMBERS, Comparison, candidates, request.metric
        )
        if isinstance(request.shape, Nearest):
            nearest = partial(comparison.nearest, k=request.shape.k, min_score=request.shape.min_score)
            rankings = await self._in_blocks(
                len(queries), products, comparison.max_queries, lambda block: nearest(queries[block])
            )
            return Rankings.joined(rankings)
        scores = await self._in_blocks(
            len(queries), products, comparison.max_queries, lambda block: comparison.scores(queries[block])
        )
        size = len(queries) * len(candidates)
        return await self._executor.run_if_large(size, INLINE_NUMBERS, lambda: np.concatenate(scores))

    async def _in_blocks(self, rows: int, products: int, max_rows: int, compute: Callable[[slice], Part]) -> list[Part]:
        """Returns the results of `compute` for blocks of `rows` rows, each sized to take BLOCK_S."""
        if products <= INLINE_NUMBERS:
            return [compute(slice(0, rows))]
        of_row, throughput = products / rows, self._comparisons.throughput
        smallest = COMPARISON_PRODUCTS / of_row
        step = throughput.cautious_rate * BLOCK_S / of_row
        parts: list[Part] = []
        first = 0
        while first < rows:
            block = slice(first, min(rows, first + max(1, min(round(max(step, smallest)), max_rows))))
            size = block.stop - first
            async with self._comparing.hold(CURRENT_CALLER.get()):  # the executor keeps threads for texts
                part, took_s = await self._executor.run(self._timed, compute, block)
            parts.append(part)
            throughput.record(size * of_row, took_s)
            step = size * min(2.0, BLOCK_S / max(took_s, BLOCK_S / 2))
            first = block.stop
        return parts

    def _timed(self, compute: Callable[[slice], Part], block: slice) -> tuple[Part, float]:
        began_s = self._clock.monotonic_s()
        return compute(block), self._clock.monotonic_s() - began_s

    async def _embed(
        self,
        model: ServedModel,
        embedder: Embedder,
        side: TextSide,
        request: EmbedRequest | SimilarityRequest,
        slot: Slot,
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
            Urgency(request.priority, request.deadline_s, slot, request.caller),
            allow_partial=allow_partial,
            model=model.name,
        )
        if allow_partial or not embedded.row_errors:  # else the rows are undefined
            texts = len(embedded.rows) - len(embedded.row_errors)
            model.embedded_texts += texts
            model.metrics.embedded(request.priority, texts, embedded.total_tokens)
        return embedded.spread(rows, len(side.texts), empty) if empty else embedded

    def _is_cached(self, card: ModelCard, request: EmbedRequest | SimilarityRequest) -> bool:
        """Returns whether all texts of a request are cached; it must have some."""
        texts = [side for side in request.sides if isinstance(side, TextSide)]
        truncation = resolve_truncation(request, card)
        return bool(texts) and all(
            self._cache.has(card, side.texts, side.input_type, truncation, request.caller) for side in texts
        )

    def _timings(
        self,
        model: ServedModel,
        request: EmbedRequest | SimilarityRequest,
        began_s: float,
        waited_s: float,
        embedded: Sequence[Embedded],
    ) -> Timings:
        """Returns the timings, and measures them; of sides embedded concurrently, the longest of each stage."""
        timings = Timings(
            total_s=self._clock.monotonic_s() - began_s,
            tokenization_s=max(part.tokenization_s for part in embedded),
            queue_s=waited_s + max(part.queue_s for part in embedded),
            inference_s=max(part.inference_s for part in embedded),
            cached_rows=sum(part.cached_rows for part in embedded),
        )
        model.metrics.answered(
            request.priority,
            wait_s=timings.queue_s,
            tokenization_s=timings.tokenization_s,
            inference_s=timings.inference_s,
        )
        return timings


def _require_no_row_errors(embedded: Embedded, side: TextSide | VectorSide) -> None:
    """Raises the first row error, with the violations of all that have the same reason."""
    if embedded.row_errors:
        raise merge_row_errors(side.path, embedded.row_errors)
