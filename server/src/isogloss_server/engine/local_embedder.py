"""The Embedder of every local model: texts -> tokens -> the batcher, or Model.forward where that costs less."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from isogloss.wire.enums import InputType, Truncation

from isogloss_server.clock import Clock, covered_s
from isogloss_server.engine.batch_queue import InferenceResult
from isogloss_server.engine.batcher import Batcher, checked_forward, non_finite_error, out_of_memory_error
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.monitoring import FailureMonitor, Reporter, to_nobody
from isogloss_server.engine.self_test import F32_TOLERANCE, Probes, verify
from isogloss_server.errors import DomainError, RowFaults
from isogloss_server.models.interfaces import Embedded, Model, ModelCard, Rows, TokenBatch, Tolerance, Urgency
from isogloss_server.models.tokenizer import TextTokenizer, Tokenized


class DirectRunner:
    """A model without a queue: a call's texts are computed on the thread that asks."""

    def __init__(self, model: Model, dimensions: int, vitals: FailureMonitor) -> None:
        self._model = model
        self._dimensions = dimensions
        self._vitals = vitals

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns finite rows float32 [n, d]; where memory does not suffice, computed in halves, down to one text.

        Raises:
            OutOfMemoryError: it does not suffice for one of the texts.
            ValueError: the model gives something else.
        """
        try:
            rows = self._finite(batch)
        except BaseException as error:
            self._vitals.failed(error)
            raise
        self._vitals.succeeded()
        return rows

    def _finite(self, batch: TokenBatch) -> Rows:
        rows = self._in_parts(batch)
        if not np.isfinite(rows).all():
            raise non_finite_error()
        return rows

    def _in_parts(self, batch: TokenBatch) -> Rows:
        try:
            return checked_forward(self._model, batch, self._dimensions)
        except MemoryError:
            if len(batch.lengths) == 1:
                raise out_of_memory_error() from None
        # Only here, where the error no longer holds what the pass had in memory.
        middle = len(batch.lengths) // 2
        at = int(batch.lengths[:middle].sum())
        halves = (
            TokenBatch(batch.ids[:at], batch.lengths[:middle]),
            TokenBatch(batch.ids[at:], batch.lengths[middle:]),
        )
        return np.concatenate([self._in_parts(half) for half in halves])


BLOCK_CHARACTERS = 1 << 16  # tokenised at a time: a cancelled call ends with the block it is in


INLINE_CHARACTERS = 1 << 10  # so few are done sooner than another thread could take them over


@dataclass(frozen=True, slots=True)
class _Block:
    """The tokens of one block of texts, the moments around it, and its rows where no batcher is to compute them."""

    tokenized: Tokenized
    asked_s: float
    began_s: float
    tokenized_s: float
    computed: InferenceResult | None


class LocalEmbedder:
    """Runs a local model's tokenizer and forward pass."""

    def __init__(
        self,
        model: Model,
        tokens: TextTokenizer,
        card: ModelCard,
        prompts: Mapping[InputType, str],
        workers: Executor,
        clock: Clock,
        *,
        batcher: Batcher | None = None,
        tolerance: Tolerance = F32_TOLERANCE,
        reporter: Reporter = to_nobody,
    ) -> None:
        """Takes `batcher` where computing costs more than a hand-over; `tolerance` is as in `verify`.

        Without one it tells how the model does, by what `reporter` gives.
        """
        self._model = model
        self._tokens = tokens
        self._card = card
        self._prompts = prompts
        self._workers = workers
        self._clock = clock
        self._batcher = batcher
        self._direct = (
            DirectRunner(model, card.dimensions[0], FailureMonitor(reporter("batches"))) if batcher is None else None
        )
        self._tolerance = tolerance

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        return self._card

    async def embed(
        self, texts: Sequence[str], input_type: InputType, truncation: Truncation, urgency: Urgency
    ) -> Embedded:
        """Returns the vectors of `texts`, in order; see `models.base.Embedder`.

        With a batcher, a block waits in the queue while the next one is tokenised. Whatever ends the call, nothing of
        it stays in the queue.
        """
        inline = sum(map(len, texts)) <= INLINE_CHARACTERS
        blocks: list[_Block] = []
        submitted: list[asyncio.Future[InferenceResult]] = []
        try:
            for part in _parts(texts):
                arguments = part, self._prompts.get(input_type, ""), truncation, self._clock.monotonic_s()
                block = self._work(*arguments) if inline else await self._workers.run(self._work, *arguments)
                blocks.append(block)
                if self._batcher is not None and not _faults(blocks):
                    submitted.append(self._batcher.submit(block.tokenized.batch, urgency))
            if faults := _faults(blocks):
                raise RowFaults(faults)
            computed = [block.computed for block in blocks if block.computed is not None]
            return _joined(blocks, computed or await _all(submitted))
        finally:
            for future in submitted:  # no harm to those that are done, and what failed unasked is not reported
                future.cancel()
            submitted.clear()  # else an error, by its traceback, and the future that it came of keep each other

    def _work(self, texts: Sequence[str], prompt: str, truncation: Truncation, asked_s: float) -> _Block:
        """Tokenises texts, and without a batcher infers them unless one is at fault."""
        began_s = self._clock.monotonic_s()
        tokenized = self._tokens.encode_with_prompt(prompt, texts, truncation)
        tokenized_s = self._clock.monotonic_s()
        computed = None
        if self._direct is not None and not tokenized.row_errors:
            rows = self._direct.forward(tokenized.batch)
            computed = InferenceResult(rows, ((tokenized_s, self._clock.monotonic_s()),))
        return _Block(tokenized, asked_s, began_s, tokenized_s, computed)

    def verify(self, probes: Probes) -> None:
        """Runs the model for the first time, past the batcher; see `verification.verify`.

        Raises:
            ModelFilesError: the model does not compute what it should.
        """
        verify(self._encode, self._model.forward, probes, self._tolerance)

    def close(self, wait_s: float = 0.0) -> None:
        """Closes the batcher; see `models.base.Embedder`."""
        if self._batcher is not None:
            self._batcher.close(wait_s)

    def _encode(self, texts: Sequence[str]) -> TokenBatch:
        return self._tokens.encode(texts, Truncation.END).batch


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields `texts` in parts of about BLOCK_CHARACTERS; a longer text is a part of its own."""
    first, characters = 0, 0
    for row, text in enumerate(texts):
        if row > first and characters + len(text) > BLOCK_CHARACTERS:
            yield texts[first:row]
            first, characters = row, 0
        characters += len(text)
    yield texts[first:]


def _faults(blocks: Sequence[_Block]) -> dict[int, DomainError]:
    """Returns what is wrong with which texts of all blocks, rows counted through."""
    faults: dict[int, DomainError] = {}
    first = 0
    for block in blocks:
        if block.tokenized.row_errors:
            faults |= {first + row: fault for row, fault in block.tokenized.row_errors.items()}
        first += len(block.tokenized.batch.lengths)
    return faults


async def _all(submitted: Sequence["asyncio.Future[InferenceResult]"]) -> Sequence[InferenceResult]:
    return [await submitted[0]] if len(submitted) == 1 else await asyncio.gather(*submitted)


def _joined(blocks: Sequence[_Block], computed: Sequence[InferenceResult]) -> Embedded:
    """Returns what all blocks gave, rows counted through."""
    truncated: list[int] = []
    first = 0
    for block in blocks:
        truncated += (first + row for row in block.tokenized.truncated_rows)
        first += len(block.tokenized.batch.lengths)
    counts = [block.tokenized.batch.lengths for block in blocks]
    tokenizing = [(block.began_s, block.tokenized_s) for block in blocks]
    inferring = [span for part in computed for span in part.spans]
    ended_s = max(end_s for _, end_s in inferring)
    return Embedded(
        rows=computed[0].rows if len(computed) == 1 else np.concatenate([part.rows for part in computed]),
        token_counts=counts[0] if len(counts) == 1 else np.concatenate(counts),
        truncated_rows=tuple(truncated),
        total_tokens=sum(len(block.tokenized.batch.ids) for block in blocks),
        tokenization_s=covered_s(tokenizing),
        queue_s=ended_s - blocks[0].asked_s - covered_s(tokenizing + inferring),
        inference_s=covered_s(inferring),
    )
