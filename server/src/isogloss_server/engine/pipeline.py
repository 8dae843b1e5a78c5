"""THE STORY OF ONE JOB, readable top to bottom: check -> cache -> embedder -> shape, or -> compare the sides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np
from isogloss.wire.enums import InputType

from isogloss_server.clock import Clock
from isogloss_server.engine import vectors
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.lanes import Turn
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
from isogloss_server.errors import DomainError, RowFaults, merge
from isogloss_server.models.interfaces import Embedded, ModelCard, Rows

INLINE_NUMBERS = 1 << 17  # so few are done sooner than another thread could take them over

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that one job took, in all and stage by stage."""

    total_s: float
    tokenization_s: float
    queue_s: float
    inference_s: float
    cached_rows: int  # answered without inference


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """The answer to an EmbedRequest: the shaped matrix, and what became of the texts on the way to it."""

    matrix: vectors.Quantised
    model: str
    space_id: str
    embedded: Embedded
    faults: dict[int, DomainError]  # of rows of zeros, ascending
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityResult:
    """The answer to a SimilarityRequest: scores float32 [q, c] or [1, n], or rankings."""

    compared: Rows | Rankings
    model: str
    space_id: str
    truncated_queries: Sequence[int]
    truncated_candidates: Sequence[int]
    total_tokens: int
    timings: Timings


class Pipeline:
    """Takes jobs of every face through the engine."""

    def __init__(self, registry: Registry, workers: Executor, clock: Clock, cache: Cache | None = None) -> None:
        """Without `cache`, nothing is kept, and nobody waits for another's computation."""
        self._registry = registry
        self._workers = workers
        self._clock = clock
        self._cache = cache or Cache(clock, max_bytes=0)

    async def embed(self, job: EmbedRequest) -> EmbedResult:
        """Returns the vectors of a job's texts, shaped as it asks.

        Raises:
            DomainError: one of those that errors/ lists.
        """
        began_s = self._clock.monotonic_s()
        model = self._registry.get(job.model)
        columns = job.check(model.ready.embedder.card, model.ready.limits)
        faults: dict[int, DomainError] = {}
        async with Turn(self._clock, model, job, partial(self._is_known, model, job)) as turn:
            if job.allow_partial:
                embedded, faults = await self._embed_what_can_be(model, job)
            else:
                embedded = await self._embed_all(model, TextSide(job.path, job.texts, job.input_type), job)
            turn.take_note(embedded, len(faults))
            shape = partial(vectors.shape, columns=columns, normalize=job.normalize, element_type=job.element_type)
            matrix = await self._run(embedded.rows.size, shape, embedded.rows)
        return EmbedResult(
            matrix=matrix,
            model=model.name,
            space_id=model.ready.embedder.card.space_id,
            embedded=embedded,
            faults=faults,
            timings=self._timings(began_s, turn.waited_s, embedded),
        )

    async def similarity(self, job: SimilarityRequest) -> SimilarityResult:
        """Returns the scores of a job's queries against its candidates, or each query's nearest candidates.

        Raises:
            DomainError: one of those that errors/ lists.
        """
        began_s = self._clock.monotonic_s()
        model = self._registry.get(job.model)
        columns = job.check(model.ready.embedder.card, model.ready.limits)
        async with Turn(self._clock, model, job, partial(self._is_known, model, job)) as turn:
            queries, of_queries = await self._side(model, job.queries, columns, job)
            candidates, of_candidates = queries, of_queries
            if job.candidates is not None:
                candidates, of_candidates = await self._side(model, job.candidates, columns, job)
            compared = await self._compare(job, queries, candidates)
            parts = [of_queries] if job.candidates is None else [of_queries, of_candidates]
            for side, part in zip((job.queries, job.candidates), parts, strict=False):
                if isinstance(side, TextSide):
                    turn.take_note(part)
        return SimilarityResult(
            compared=compared,
            model=model.name,
            space_id=model.ready.embedder.card.space_id,
            truncated_queries=of_queries.truncated_rows,
            truncated_candidates=of_candidates.truncated_rows,
            total_tokens=sum(part.total_tokens for part in parts),
            timings=self._timings(began_s, turn.waited_s, *parts),
        )

    async def _side(
        self, model: ServedModel, side: TextSide | VectorSide, columns: int, job: SimilarityRequest
    ) -> tuple[Rows, Embedded]:
        """Returns float32 [n, columns]: texts embedded to unit length, vectors as they are."""
        if isinstance(side, VectorSide):
            return side.rows, Embedded(rows=side.rows, token_counts=None)
        embedded = await self._embed_all(model, side, job)
        rows = await self._run(embedded.rows.size, lambda: vectors.unit_length(embedded.rows[:, :columns]))
        return rows, embedded

    async def _compare(self, job: SimilarityRequest, queries: Rows, candidates: Rows) -> Rows | Rankings:
        """Compares block by block, so that a cancelled call ends with the block that it is in."""
        if isinstance(job.shape, Pairwise):
            return await self._run(queries.size, lambda: pairwise(queries, candidates, job.metric)[None])
        work = len(queries) * candidates.size
        comparison = await self._run(work, Comparison, candidates, job.metric)
        blocks = [queries[block] for block in comparison.blocks(queries)]
        if isinstance(job.shape, Nearest):
            nearest = partial(comparison.nearest, k=job.shape.k, min_score=job.shape.min_score)
            return Rankings.joined([await self._run(work, nearest, block) for block in blocks])
        return np.concatenate([await self._run(work, comparison.scores, block) for block in blocks])

    async def _embed_all(self, model: ServedModel, side: TextSide, job: EmbedRequest | SimilarityRequest) -> Embedded:
        """Embeds every text, or raises what is wrong with the first that cannot be, and with others alike."""
        faults = find_empty_texts(side.texts)
        if not faults:
            try:
                return await self._infer(model, side.texts, side.input_type, job)
            except RowFaults as found:
                faults = found.faults
        try:
            raise merge([faults[row].at(side.path, row) for row in sorted(faults)])
        finally:
            del faults  # else the error, by its traceback, keeps itself and the texts until the collector comes by

    async def _embed_what_can_be(
        self, model: ServedModel, job: EmbedRequest
    ) -> tuple[Embedded, dict[int, DomainError]]:
        """Embeds the texts that can be; the others are rows of zeros, each with its fault."""
        faults = find_empty_texts(job.texts)
        embedded = nothing(model.ready.embedder.card)
        good: list[int] = []
        for _ in range(2):  # the first time the tokenizer may find more faults
            good = [row for row in range(len(job.texts)) if row not in faults]
            if not good:
                break
            try:
                embedded = await self._infer(model, [job.texts[row] for row in good], job.input_type, job)
                break
            except RowFaults as found:
                faults |= {good[row]: fault for row, fault in found.faults.items()}
        for row, fault in faults.items():
            fault.at(job.path, row)
        return embedded.spread(good, len(job.texts)), dict(sorted(faults.items()))

    async def _infer(
        self, model: ServedModel, texts: Sequence[str], input_type: InputType, job: EmbedRequest | SimilarityRequest
    ) -> Embedded:
        embedder = model.ready.embedder
        truncation = resolve_truncation(job, embedder.card)
        embedded = await self._cache.embed(embedder, texts, input_type, truncation, job.urgency)
        model.embedded_texts += len(texts)
        return embedded

    def _is_known(self, model: ServedModel, job: EmbedRequest | SimilarityRequest) -> bool:
        """Returns whether the cache has all texts of a job that has some."""
        card = model.ready.embedder.card
        sides = (
            [TextSide(job.path, job.texts, job.input_type)]
            if isinstance(job, EmbedRequest)
            else [job.queries, job.candidates]
        )
        texts = [side for side in sides if isinstance(side, TextSide)]
        manner = resolve_truncation(job, card)
        return bool(texts) and all(self._cache.knows(card, side.texts, side.input_type, manner) for side in texts)

    async def _run(self, numbers: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs numpy work: off the event loop where it touches many numbers."""
        if numbers <= INLINE_NUMBERS:
            return work(*args, **kwargs)
        return await self._workers.run(work, *args, **kwargs)

    def _timings(self, began_s: float, waited_s: float, *parts: Embedded) -> Timings:
        return Timings(
            total_s=self._clock.monotonic_s() - began_s,
            tokenization_s=sum(part.tokenization_s for part in parts),
            queue_s=waited_s + sum(part.queue_s for part in parts),
            inference_s=sum(part.inference_s for part in parts),
            cached_rows=sum(part.cached_rows for part in parts),
        )


def nothing(card: ModelCard) -> Embedded:
    """Returns what an Embedder would give for no texts."""
    return Embedded(rows=np.empty((0, card.dimensions[0]), np.float32), token_counts=np.empty(0, np.int64))
