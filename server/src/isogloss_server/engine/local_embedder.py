"""LocalEmbedder: the Embedder of every local model. Tokenizes, then submits to the batcher or infers at once."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from isogloss.wire.enums import InputType, Truncation
from numpy.typing import NDArray

from isogloss_server import tracing
from isogloss_server.clock import Clock, covered_s
from isogloss_server.engine.backlog import Throughput
from isogloss_server.engine.batch_queue import InferenceResult
from isogloss_server.engine.batcher import Batcher, checked_forward, non_finite_error, out_of_memory_error
from isogloss_server.engine.executor import INLINE_CHARACTERS, Executor
from isogloss_server.engine.monitoring import FailureMonitor, Report, ignore_report
from isogloss_server.engine.self_test import F32_TOLERANCE, Probes, verify
from isogloss_server.errors import DomainError
from isogloss_server.models.interfaces import Embedded, Model, ModelCard, Rows, TokenBatch, Tolerance, Urgency
from isogloss_server.models.tokenizer import CALL_CHARACTERS, TextTokenizer, Tokenized, split

BLOCK_CHARACTERS = CALL_CHARACTERS  # tokenized at a time: a cancelled call ends with its current block


class DirectRunner:
    """Runs inference on the calling thread, for models that are too fast for a queue."""

    def __init__(self, model: Model, dimensions: int, failures: FailureMonitor) -> None:
        self._model = model
        self._dimensions = dimensions
        self._failures = failures

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns finite rows, float32 [n, d]; if memory is insufficient, computed in halves, down to one text.

        Raises:
            OutOfMemoryError: memory is insufficient for a single text.
            ValueError: the model returned another shape or dtype, or numbers that are not finite.
        """
        try:
            rows = self._finite(batch)
        except BaseException as error:
            self._failures.batch_failed(error)
            raise
        self._failures.batch_succeeded()
        return rows

    def _finite(self, batch: TokenBatch) -> Rows:
        rows = self._forward_halving(batch)
        if not np.isfinite(rows).all():
            raise non_finite_error()
        return rows

    def _forward_halving(self, batch: TokenBatch) -> Rows:
        try:
            return checked_forward(self._model, batch, self._dimensions)
        except MemoryError:
            if len(batch.lengths) == 1:
                raise out_of_memory_error() from None
        # Outside the handler, where the error no longer holds the memory of the failed inference.
        middle = len(batch.lengths) // 2
        at = int(batch.lengths[:middle].sum())
        halves = (
            TokenBatch(batch.ids[:at], batch.lengths[:middle]),
            TokenBatch(batch.ids[at:], batch.lengths[middle:]),
        )
        return np.concatenate([self._forward_halving(half) for half in halves])


@dataclass(frozen=True, slots=True)
class _Block:
    """Tokens of a block of texts, the moments around the tokenization, and the rows unless a batcher computes them."""

    tokenized: Tokenized
    submitted_s: float
    began_s: float
    tokenized_s: float
    result: InferenceResult | None = None


class LocalEmbedder:
    """Tokenizes texts and runs inference of a local model.

    Attributes:
        card: Description of the model.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: TextTokenizer,
        card: ModelCard,
        prompts: Mapping[InputType, str],
        executor: Executor,
        clock: Clock,
        *,
        throughput: Throughput,
        batcher: Batcher | None = None,
        tolerance: Tolerance = F32_TOLERANCE,
        report: Report = ignore_report,
    ) -> None:
        """Creates an embedder, with a batcher if inference costs more than a hand-over to a thread.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            card: Its description.
            prompts: Its prompts; missing input types have none.
            executor: Runs tokenization and, without a batcher, inference.
            clock: The clock.
            throughput: Measures tokens a second of one thread.
            batcher: Runs inference.
            tolerance: See `self_test.verify`.
            report: Receives the health of inference if there is no batcher; called from any thread.
        """
        self._model = model
        self._tokenizer = tokenizer
        self.card = card
        self._prompts = prompts
        self._executor = executor
        self._clock = clock
        self._throughput = throughput
        self._batcher = batcher
        self._direct = DirectRunner(model, card.dimensions[0], FailureMonitor(report)) if batcher is None else None
        self._tolerance = tolerance

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        """Returns the vectors of `texts`, in order; see `interfaces.Embedder`.

        With a batcher, a block waits in the batch queue while the next one is tokenized. When the call ends, for any
        reason, its remaining texts are removed from the queue.
        """
        prompt = self._prompts.get(input_type, "")
        characters = sum(map(len, texts)) + len(prompt) * len(texts)
        blocks: list[_Block] = []
        row_errors: dict[int, DomainError] = {}
        submitted: list[asyncio.Future[InferenceResult]] = []
        tokenized_texts = 0
        try:
            for first, part in split(texts, BLOCK_CHARACTERS, each=len(prompt)):
                block = await self._executor.run_if_large(
                    characters,
                    INLINE_CHARACTERS,
                    self._process,
                    part,
                    prompt,
                    truncation,
                    self._clock.monotonic_s(),
                    infer=allow_partial or not row_errors,
                    allow_partial=allow_partial,
                )
                blocks.append(block)
                tokenized_texts += len(part)
                self._report(block, urgency, is_last=tokenized_texts == len(texts))
                if (span := tracing.current()) is not None:
                    _record(block, span)
                row_errors |= {first + row: error for row, error in block.tokenized.row_errors.items()}
                if self._batcher is not None and (allow_partial or not row_errors):
                    batch = _without_errors(block.tokenized)
                    if len(batch.lengths):
                        submitted.append(self._batcher.submit(batch, urgency))
            if row_errors and not allow_partial:
                return Embedded.failed(
                    len(texts), self.card.dimensions[0], row_errors, tokenization_s=_tokenization_s(blocks)
                )
            results = [block.result for block in blocks if block.result is not None]
            if submitted:
                results = [await submitted[0]] if len(submitted) == 1 else await asyncio.gather(*submitted)
            return _join(blocks, results, row_errors, self.card.dimensions[0])
        finally:
            for future in submitted:  # no effect on those that are done
                future.cancel()

    def _process(
        self,
        texts: Sequence[str],
        prompt: str,
        truncation: Truncation,
        submitted_s: float,
        *,
        infer: bool,
        allow_partial: bool,
    ) -> _Block:
        """Tokenizes a block; without a batcher also runs inference, unless a row error fails the whole call."""
        began_s = self._clock.monotonic_s()
        tokenized = self._tokenizer.encode_with_prompt(prompt, texts, truncation)
        tokenized_s = self._clock.monotonic_s()
        if self._direct is None or not infer or (tokenized.row_errors and not allow_partial):
            return _Block(tokenized, submitted_s, began_s, tokenized_s)
        batch = _without_errors(tokenized)
        if not len(batch.lengths):
            return _Block(tokenized, submitted_s, began_s, tokenized_s)
        rows = self._direct.forward(batch)
        ended_s = self._clock.monotonic_s()
        result = InferenceResult(rows, ((tokenized_s, ended_s),))
        self._throughput.record(len(batch.ids), ended_s - began_s)
        return _Block(tokenized, submitted_s, began_s, tokenized_s, result)

    def _report(self, block: _Block, urgency: Urgency, *, is_last: bool) -> None:
        """Reports the tokens of a block, and that they are computed if no batcher computes them."""
        if urgency.progress is not None:
            tokens = len(block.tokenized.batch.ids)
            urgency.progress.tokenized(tokens, is_last=is_last)
            if block.result is not None:
                urgency.progress.computed(tokens)

    def verify(self, probes: Probes) -> None:
        """Runs the model for the first time, without the batcher; see `self_test.verify`.

        Raises:
            ModelFilesError: the model does not compute the expected vectors.
        """
        verify(self._encode, self._timed_forward, probes, self._tolerance)

    def _timed_forward(self, batch: TokenBatch) -> Rows:
        """Runs inference and records its speed, so that the first long batch is not taken for a stalled one."""
        began_s = self._clock.monotonic_s()
        rows = self._model.forward(batch)
        self._throughput.record(len(batch.ids), self._clock.monotonic_s() - began_s)
        return rows

    def close(self, wait_s: float = 0.0) -> None:
        """Closes the batcher; see `interfaces.Embedder`."""
        if self._batcher is not None:
            self._batcher.close(wait_s)

    def _encode(self, texts: Sequence[str]) -> TokenBatch:
        return self._tokenizer.encode(texts, Truncation.END).batch


def _record(block: _Block, span: tracing.Span) -> None:
    """Adds the tokenization of a block to the span of its call, and its inference unless a batcher runs it."""
    attributes = {"isogloss.tokens": len(block.tokenized.batch.ids)}
    tracing.record(span, "tokenization", (block.began_s, block.tokenized_s), attributes)
    for times_s in () if block.result is None else block.result.spans:
        tracing.record(span, "inference", times_s)


def _tokenization_s(blocks: Sequence[_Block]) -> float:
    return covered_s([(block.began_s, block.tokenized_s) for block in blocks])


def _without_rows(n: int, rows: Iterable[int]) -> NDArray[np.bool_]:
    """Returns a mask of n rows, bool [n], that is False for `rows`."""
    mask = np.ones(n, bool)
    mask[list(rows)] = False
    return mask


def _without_errors(tokenized: Tokenized) -> TokenBatch:
    """Returns the tokens of the texts that have no error."""
    batch = tokenized.batch
    if not tokenized.row_errors:
        return batch
    good = _without_rows(len(batch.lengths), tokenized.row_errors)
    return TokenBatch(batch.ids[np.repeat(good, batch.lengths)], batch.lengths[good])


def _join(
    blocks: Sequence[_Block], results: Sequence[InferenceResult], row_errors: Mapping[int, DomainError], dimensions: int
) -> Embedded:
    """Returns the rows of all blocks, in the order of their texts."""
    truncated: list[int] = []
    n = 0
    for block in blocks:
        truncated += [n + row for row in block.tokenized.truncated_rows if row not in block.tokenized.row_errors]
        n += len(block.tokenized.batch.lengths)
    lengths = [block.tokenized.batch.lengths for block in blocks]
    counts = lengths[0] if len(lengths) == 1 else np.concatenate(lengths)
    tokenizing = [(block.began_s, block.tokenized_s) for block in blocks]
    inferring = [span for result in results for span in result.spans]
    ended_s = max(end_s for _, end_s in inferring or tokenizing)
    total_tokens = sum(len(block.tokenized.batch.ids) for block in blocks)
    rows = results[0].rows if len(results) == 1 else np.concatenate([_empty(dimensions), *(r.rows for r in results)])
    if row_errors:
        good = _without_rows(n, row_errors)
        counts = np.where(good, counts, 0)
        total_tokens = int(counts.sum())
        computed, rows = rows, np.zeros((n, dimensions), np.float32)
        rows[good] = computed
    return Embedded(
        rows=rows,
        token_counts=counts,
        truncated_rows=tuple(truncated),
        row_errors=row_errors,
        total_tokens=total_tokens,
        tokenization_s=covered_s(tokenizing),
        queue_s=ended_s - blocks[0].submitted_s - covered_s(tokenizing + inferring),
        inference_s=covered_s(inferring),
    )


def _empty(dimensions: int) -> Rows:
    return np.empty((0, dimensions), np.float32)
