"""A simulation of one or more models' queues in virtual time: real admission and scheduling, modelled inference."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from isogloss.wire.enums import Priority
from isogloss_server.engine.admission import Admission, AdmissionLimits, Slot
from isogloss_server.engine.backlog import Backlog, Throughput
from isogloss_server.engine.batch_queue import BULK_SHARE, BatchScheduler, QueuedText, Submission
from isogloss_server.engine.request import RequestSize
from isogloss_server.errors import OverloadedError
from isogloss_server.models.interfaces import ModelCard, TokenBatch, Urgency

from tests.support.manual_clock import ManualClock

MAX_BATCH_TOKENS = 128
THREADS = 2
BYTES_PER_TOKEN = 4
CARD = ModelCard(backend="simulated", space_id="s-simulated", dimensions=(4,), max_tokens=512)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request, as admission reads it, and the lengths of its texts in tokens.

    Attributes:
        at_s: Time of arrival.
        timeout_s: Seconds until its deadline.
        bytes_per_token: Bytes of UTF-8 for a token of its texts.
        caller: Name of its caller, "" if it is unknown.
    """

    at_s: float
    lengths: Sequence[int]
    timeout_s: float = math.inf
    priority: Priority = Priority.INTERACTIVE
    model: int = 0
    bytes_per_token: float = BYTES_PER_TOKEN
    from_stream: bool = False
    caller: str = ""

    @property
    def deadline_s(self) -> float:
        """The moment after which the result is useless."""
        return self.at_s + self.timeout_s

    def size(self, _card: ModelCard) -> RequestSize:
        """Returns its cost."""
        return RequestSize(len(self.lengths), math.ceil(sum(self.lengths) * self.bytes_per_token))


@dataclass
class Outcome:
    """What became of a request: refused with the retry delay, or done after some seconds; neither if it was late."""

    arrival: Arrival
    refused_retry_s: float | None = None
    took_s: float | None = None

    @property
    def in_time(self) -> bool:
        """True if the result arrived before the deadline."""
        return self.took_s is not None and self.took_s <= self.arrival.timeout_s


@dataclass
class SimulatedModel:
    """The queue of one model. A batch takes `batch_s` seconds and `token_s` for each of its tokens."""

    batch_s: float
    token_s: float
    clock: ManualClock
    throughput: Throughput = field(
        default_factory=lambda: Throughput(full_units=MAX_BATCH_TOKENS / 8, memory_units=4 * MAX_BATCH_TOKENS)
    )

    def __post_init__(self) -> None:
        backlog = Backlog(self.throughput, lanes=THREADS, turn=MAX_BATCH_TOKENS, bulk_share=1 / BULK_SHARE)
        limits = AdmissionLimits(max_bytes=1 << 40, bulk_slots=1 << 30)
        self.admission = Admission("simulated", CARD, limits, self.clock, backlog)
        self.scheduler = BatchScheduler(MAX_BATCH_TOKENS, self.throughput)
        self.running = 0

    @property
    def capacity(self) -> float:
        """Tokens a second with full batches on all threads."""
        return THREADS * MAX_BATCH_TOKENS / (self.batch_s + self.token_s * MAX_BATCH_TOKENS)


class Simulation:
    """Runs arrivals through the queues; models share THREADS cores."""

    def __init__(self, *speeds: tuple[float, float], warm: bool = True) -> None:
        """Takes (batch_s, token_s) of each model; a warm model has measured its speed."""
        self._clock = ManualClock()
        self._clock.now_s = 0.0
        self.models = [SimulatedModel(batch_s, token_s, self._clock) for batch_s, token_s in speeds]
        if warm:
            for model in self.models:
                for _ in range(20):
                    model.throughput.record(MAX_BATCH_TOKENS, THREADS * MAX_BATCH_TOKENS / model.capacity)
        self._events: list[tuple[float, int, Any]] = []
        self._order = itertools.count()
        self._ids = itertools.count()
        self._slots: dict[Submission, tuple[Slot, Outcome]] = {}

    def run(self, arrivals: Sequence[Arrival], *, admitted: int | None = None) -> list[Outcome]:
        """Returns the outcome of each arrival.

        With `admitted`, the index of one that is not refused, the simulation ends when that one is done or late.
        """
        with asyncio.Runner() as runner:  # admission creates futures, for which nothing waits here
            return runner.run(self._run(arrivals, admitted))

    async def _run(self, arrivals: Sequence[Arrival], admitted: int | None) -> list[Outcome]:
        outcomes = [Outcome(arrival) for arrival in arrivals]
        for index, arrival in enumerate(arrivals):
            self._schedule(arrival.at_s, lambda index=index: self._arrive(outcomes[index], forced=index == admitted))
        last_s = math.inf if admitted is None else arrivals[admitted].deadline_s
        while self._events and self._clock.now_s <= last_s and (admitted is None or outcomes[admitted].took_s is None):
            self._clock.now_s, _, event = heapq.heappop(self._events)
            event()
        return outcomes

    def _schedule(self, at_s: float, event: Any) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event))

    def _arrive(self, outcome: Outcome, *, forced: bool) -> None:
        arrival = outcome.arrival
        model = self.models[arrival.model]
        request: Any = arrival
        try:
            slot = _completed(model.admission.enter(request, arrival.size(CARD), lambda: forced))
        except OverloadedError as error:
            outcome.refused_retry_s = error.retry_after_s
            return
        slot.tokenized(sum(arrival.lengths), is_last=True)
        future: Any = None  # resolved here, not by the batcher
        urgency = Urgency(arrival.priority, arrival.deadline_s, slot, arrival.caller)
        submission = Submission(len(arrival.lengths), 1, urgency, future)
        first, count = next(self._ids), sum(arrival.lengths)
        ids = np.full(count, first, np.int32)
        starts = np.cumsum([0, *arrival.lengths[:-1]])
        ids[starts] += np.arange(len(starts), dtype=np.int32) << 16  # texts differ
        self._slots[submission] = slot, outcome
        batch = TokenBatch(ids, np.array(arrival.lengths, np.int64))
        model.scheduler.put(submission, batch, arrival.priority, self._clock.now_s)
        self._start_batches(model)

    def _start_batches(self, model: SimulatedModel) -> None:
        while model.running < THREADS and model.scheduler.texts:
            batch, expired = model.scheduler.take(self._clock.now_s, THREADS - model.running - 1)
            for submission in expired:
                self._leave(submission)
            if batch:
                model.running += 1
                busy = sum(each.running for each in self.models)
                took_s = (model.batch_s + model.token_s * _tokens(batch)) * max(1.0, busy / THREADS)
                began_s = self._clock.now_s
                self._schedule(
                    began_s + took_s, lambda batch=batch, took_s=took_s: self._end_batch(model, batch, took_s)
                )

    def _end_batch(self, model: SimulatedModel, batch: list[QueuedText], took_s: float) -> None:
        model.running -= 1
        model.throughput.record(_tokens(batch), took_s)
        for text in batch:
            text.queue.forget(text)
        for text in batch:
            for submission, _ in text.owners:
                submission.missing -= 1
                if not submission.missing:
                    _, outcome = self._slots[submission]
                    outcome.took_s = self._clock.now_s - outcome.arrival.at_s
                    self._leave(submission)
                elif submission.progress is not None:
                    submission.progress.computed(text.length)
        self._start_batches(model)

    def _leave(self, submission: Submission) -> None:
        if submission in self._slots:
            slot, outcome = self._slots.pop(submission)
            slot.total_tokens = sum(outcome.arrival.lengths)
            self.models[outcome.arrival.model].admission.leave(slot)


def _tokens(batch: list[QueuedText]) -> int:
    return sum(text.length for text in batch)


def _completed(coroutine: Any) -> Any:
    """Returns the result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise asyncio.InvalidStateError("the request waits")


def useful_tokens(outcomes: Sequence[Outcome]) -> int:
    """Returns the tokens of requests that were answered in time."""
    return sum(sum(outcome.arrival.lengths) for outcome in outcomes if outcome.in_time)
