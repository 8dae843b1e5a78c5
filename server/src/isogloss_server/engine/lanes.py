"""When a job may work: where there is room in the model's queue, and its lane lets it."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from isogloss.wire.enums import Priority

from isogloss_server import metrics
from isogloss_server.clock import Clock
from isogloss_server.engine.admission import Cost
from isogloss_server.engine.registry import ServedModel
from isogloss_server.engine.request import EmbedRequest, SimilarityRequest
from isogloss_server.errors import DeadlineExceededError, OverloadedError
from isogloss_server.models.interfaces import Embedded

QUEUED_BULK_JOBS = 256  # of a model with a queue of its own: enough to fill it, and a bound on what they hold in memory


class Turn:
    """What a job works inside of: `async with` waits until it may, and makes room for others in the end.

    Of a model's BULK jobs no more work at once than it says, so that they hold up nobody else. A job's texts count as
    the model's queued ones for as long as it is here.
    """

    __slots__ = (
        "_admission",
        "_clock",
        "_computed_texts",
        "_cost",
        "_is_known",
        "_is_typical",
        "_job",
        "_lane",
        "_model",
        "_text_bytes",
        "_tokens",
        "waited_s",
    )

    def __init__(
        self, clock: Clock, model: ServedModel, job: EmbedRequest | SimilarityRequest, is_known: Callable[[], bool]
    ) -> None:
        """Takes a job that was checked, and what tells whether the cache has all of its texts."""
        ready = model.ready
        self._clock = clock
        self._model = model
        self._job = job
        self._is_known = is_known
        self._lane = model.bulk_turns if job.priority is Priority.BULK else None
        self._admission = ready.admission
        self._text_bytes = job.text_bytes
        card, rows_bytes = ready.embedder.card, 4 * job.text_count * ready.embedder.card.dimensions[0]
        tokens = self._admission.estimate(self._text_bytes, job.text_count, card.max_tokens)
        self._cost = Cost(tokens, self._text_bytes + rows_bytes + job.vector_bytes)
        self._tokens = self._computed_texts = 0
        self._is_typical = True
        self.waited_s = 0.0

    def take_note(self, embedded: Embedded, faults: int = 0) -> None:
        """Learns from what was embedded of the job's texts what such texts cost; so many of them could not be."""
        self._tokens += embedded.total_tokens
        self._computed_texts += len(embedded.rows) - embedded.cached_rows - faults
        # Of a text that was cut, the bytes count and the tokens do not; likewise of one at fault, or one known before.
        self._is_typical &= not (embedded.truncated_rows or faults or embedded.cached_rows)

    async def __aenter__(self) -> Self:
        """Returns itself, which knows the seconds waited.

        Raises:
            OverloadedError: there is no room, or the job cannot be done before its deadline.
            DeadlineExceededError: the job's deadline has passed.
        """
        asked_s = self._clock.monotonic_s()
        if asked_s >= self._job.deadline_s:
            raise DeadlineExceededError("the deadline had passed before work began")
        self._model.queued_texts += self._job.text_count
        try:
            if self._job.patient:
                await self._admission.enter_patiently(self._cost, self._job.priority)
            else:
                self._enter(asked_s)
        except BaseException as error:
            self._model.queued_texts -= self._job.text_count
            if isinstance(error, OverloadedError):
                metrics.REFUSED_CALLS.labels(self._model.name, self._job.priority.value).inc()
            raise
        if self._lane is not None:
            try:
                await self._lane.acquire()
            except asyncio.CancelledError:
                self._leave()
                raise
        began_s = self._clock.monotonic_s()
        if began_s >= self._job.deadline_s:
            await self.__aexit__(None, None, None)
            raise DeadlineExceededError("the deadline had passed before work began")
        self.waited_s = began_s - asked_s
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lane is not None:
            self._lane.release()
        self._leave()

    def _enter(self, now_s: float) -> None:
        if not self._job.text_count:  # of vectors alone: the model has nothing to do with it
            self._admission.enter_known(self._cost, self._job.priority)
            return
        try:
            self._admission.enter(self._cost, self._job.urgency, now_s)
        except OverloadedError:  # which need not concern those who ask for what is known
            if not self._is_known():
                raise
            self._cost = Cost(0, self._cost.bytes)
            self._admission.enter_known(self._cost, self._job.priority)

    def _leave(self) -> None:
        if self._computed_texts:
            if self._tokens and self._is_typical:
                self._admission.learn_ratio(self._text_bytes, self._tokens)
            share = self._computed_texts / self._job.text_count
            self._admission.learn_rate(share * self._cost.tokens, self._clock.monotonic_s())
        self._model.queued_texts -= self._job.text_count
        self._admission.leave(self._cost, self._job.priority, patient=self._job.patient)
