"""Admission: the only place that waits for, or refuses, a slot before the model.

A model's queue is bounded in tokens and in bytes. A unary call that does not fit is refused at once, with the time
after which a retry may succeed. A request of a stream waits for room in tokens instead.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from isogloss.wire.enums import Priority

from isogloss_server import metrics
from isogloss_server.clock import Clock
from isogloss_server.engine.request import EmbedRequest, RequestSize, SimilarityRequest
from isogloss_server.errors import DeadlineExceededError, OverloadedError
from isogloss_server.models.interfaces import Embedded, ModelCard

INITIAL_TOKENS_PER_BYTE = 0.3  # of UTF-8, until texts of the model have been measured
RATIO_MEMORY_BYTES = 100_000  # a measurement from this many bytes ago has a weight of 1 / e
RATE_MEMORY_S = 5.0  # likewise, in seconds
RATE_SPAN_S = 0.25  # length of one measurement of the rate
SATURATED_TOKENS = 4_096  # below this backlog, throughput measures demand, not capacity
MARGIN = 1.5  # safety factor: a late response wastes capacity, a refused request does not
UNKNOWN_RETRY_S = 1.0
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.05, 60.0
BULK_PART = 2  # BULK may take 1 / BULK_PART of the room; streams 1 / BULK_PART of that, in each priority
PAST_DEADLINE = "the deadline passed before the model was reached"

Request = EmbedRequest | SimilarityRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds of one model's queue.

    Attributes:
        max_tokens: Estimated tokens that may wait or be computed.
        max_bytes: Bytes of their texts and vectors.
        bulk_slots: BULK requests that may run at a time: 1 if each computes by itself, many if their texts meet in a
            batch queue that knows priorities.
        interactive_share: Share of the model's speed that INTERACTIVE gets while BULK waits too.
    """

    max_tokens: int = 1 << 18
    max_bytes: int = 1 << 27
    bulk_slots: int = 1
    interactive_share: float = 7 / 8


@dataclass(slots=True)
class Slot:
    """The place of one admitted request; call `record` with every result of the embedder for it.

    Attributes:
        tokens: Estimated tokens that the request occupies in the queue; 0 if the model is not needed.
        memory_bytes: Bytes of its texts, its vectors and its rows.
        priority: Its priority.
        from_stream: True for a request of a stream.
        waited_s: Seconds that it waited for the slot.
    """

    tokens: int
    memory_bytes: int
    priority: Priority
    from_stream: bool
    waited_s: float = 0.0
    actual_tokens: int = 0
    computed_rows: int = 0
    is_typical: bool = True  # whether all its bytes became tokens

    def record(self, embedded: Embedded) -> None:
        """Counts rows and tokens that were computed for the request."""
        failed = len(embedded.row_errors)
        self.actual_tokens += embedded.total_tokens
        self.computed_rows += len(embedded.rows) - embedded.cached_rows - failed
        # The bytes of a truncated, failed or cached text were not all turned into tokens.
        self.is_typical &= not (embedded.truncated_rows or failed or embedded.cached_rows)


class Admission:
    """Slots of one model's queue, which contains the requests that wait and those that are being computed.

    Streams have room of their own in each priority, so calls and streams do not keep each other out, and BULK does not
    keep INTERACTIVE out. An empty queue admits every request that passes the limits of one request.
    """

    def __init__(self, name: str, card: ModelCard, limits: AdmissionLimits, clock: Clock) -> None:
        """Takes the name of the model, for metrics, and its card, for the sizes of rows and texts."""
        self._name = name
        self._card = card
        self._limits = limits
        self._clock = clock
        self.texts = 0  # of requests that wait or are computed
        self._tokens = dict.fromkeys(Priority, 0)
        self._bytes = dict.fromkeys(Priority, 0)
        self._stream_tokens = dict.fromkeys(Priority, 0)  # part of _tokens
        # Requests of streams that wait for room, with their tokens; INTERACTIVE first.
        self._waiting: dict[Priority, deque[tuple[asyncio.Future[None], int]]] = {p: deque() for p in Priority}
        self._bulk_slots = asyncio.Semaphore(limits.bulk_slots)
        self._tokens_per_byte = INITIAL_TOKENS_PER_BYTE
        self._rate: float | None = None  # tokens a second
        self._measured_from_s = math.inf
        self._measured_tokens = 0.0

    @property
    def tokens(self) -> int:
        """Estimated tokens that wait or are being computed."""
        return sum(self._tokens.values())

    @contextlib.asynccontextmanager
    async def admit(self, request: Request, is_cached: Callable[[], bool] = lambda: False) -> AsyncIterator[Slot]:
        """Holds a slot for a checked request, whose texts count as queued meanwhile.

        Args:
            request: The request.
            is_cached: Returns whether all its texts are cached; called only if the queue is full.

        Raises:
            OverloadedError: the request does not fit, or cannot finish before its deadline.
            DeadlineExceededError: the deadline passed while the request waited.
        """
        began_s = self._clock.monotonic_s()
        if began_s >= request.deadline_s:
            raise DeadlineExceededError(PAST_DEADLINE)
        size = request.size
        self.texts += size.texts
        try:
            slot = await self._enter(request, size, began_s, is_cached)
            try:
                async with self._bulk_slots if slot.priority is Priority.BULK else contextlib.nullcontext():
                    entered_s = self._clock.monotonic_s()
                    if entered_s >= request.deadline_s:
                        raise DeadlineExceededError(PAST_DEADLINE)
                    slot.waited_s = entered_s - began_s
                    yield slot
            finally:
                self._leave(slot, size)
        finally:
            self.texts -= size.texts

    def estimate_tokens(self, text_bytes: int, texts: int) -> int:
        """Returns the estimated tokens of `texts` texts of `text_bytes` bytes of UTF-8 together."""
        tokens = math.ceil(text_bytes * self._tokens_per_byte)
        most = self._card.max_tokens
        return min(tokens, texts * most) if most else tokens

    async def _enter(self, request: Request, size: RequestSize, now_s: float, is_cached: Callable[[], bool]) -> Slot:
        priority = request.priority
        memory_bytes = size.text_bytes + size.vector_bytes + 4 * size.texts * self._card.dimensions[0]
        slot = Slot(self.estimate_tokens(size.text_bytes, size.texts), memory_bytes, priority, request.from_stream)
        try:
            if slot.from_stream:
                await self._wait_for_room(slot)
                return slot
            self._check_bytes(slot)
            if size.texts:
                try:
                    self._check_tokens(slot, request.deadline_s, now_s)
                except OverloadedError:
                    if not is_cached():
                        raise
                    slot.tokens = 0
        except OverloadedError:
            metrics.REFUSED_CALLS.labels(self._name, priority.value).inc()
            raise
        self._tokens[priority] += slot.tokens
        self._bytes[priority] += memory_bytes
        return slot

    def _leave(self, slot: Slot, size: RequestSize) -> None:
        if slot.computed_rows:
            if slot.actual_tokens and slot.is_typical:
                self._learn_ratio(size.text_bytes, slot.actual_tokens)
            share = slot.computed_rows / size.texts
            self._learn_rate(share * slot.tokens, self._clock.monotonic_s())
        self._tokens[slot.priority] -= slot.tokens
        self._bytes[slot.priority] -= slot.memory_bytes
        if slot.from_stream:
            self._stream_tokens[slot.priority] -= slot.tokens
        if self.tokens < SATURATED_TOKENS:
            self._measured_from_s = math.inf  # idle time must not lower the measured rate
        self._grant_room()

    def _check_tokens(self, slot: Slot, deadline_s: float, now_s: float) -> None:
        """Raises OverloadedError if the queue has no room for the tokens, or no time before the deadline."""
        room = self._limits.max_tokens // (BULK_PART if slot.priority is Priority.BULK else 1)
        queued = self.tokens
        # Requires at most half of the room: otherwise a large request could enter only an empty queue.
        needed = min(slot.tokens, room // 2)
        if queued and queued + needed > room:
            excess = queued + needed - room // 2
            raise self._overloaded("the queue is full", excess, waiting_tokens=queued, limit=room)
        wait_s = self._wait_s(slot)
        if wait_s and now_s + wait_s >= deadline_s:
            message = f"estimated wait {wait_s:.1f} s exceeds the remaining {deadline_s - now_s:.1f} s"
            raise self._overloaded(message, queued / 2, waiting_tokens=queued)

    def _check_bytes(self, slot: Slot) -> None:
        """Raises OverloadedError if the memory for queued requests is full."""
        queued = sum(self._bytes.values())
        if slot.priority is Priority.BULK:
            used, limit = self._bytes[slot.priority], self._limits.max_bytes // BULK_PART
        else:
            used, limit = queued, self._limits.max_bytes
        if used and used + slot.memory_bytes > limit:
            message = "the memory for queued requests is full"
            raise self._overloaded(message, self.tokens // 2, waiting_bytes=queued, limit=limit)

    async def _wait_for_room(self, slot: Slot) -> None:
        """Admits a stream's request as soon as there is room; raises OverloadedError if memory is full."""
        self._check_bytes(slot)
        self._bytes[slot.priority] += slot.memory_bytes
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[slot.priority].append((room, slot.tokens))
        self._grant_room()
        try:
            await room
        except asyncio.CancelledError:
            self._bytes[slot.priority] -= slot.memory_bytes
            if room.done() and not room.cancelled():
                self._stream_tokens[slot.priority] -= slot.tokens
            self._grant_room()
            raise
        self._tokens[slot.priority] += slot.tokens

    def _grant_room(self) -> None:
        """Admits waiting requests of streams, in order, while there is room for them."""
        room = self._limits.max_tokens // BULK_PART // 2
        for priority, waiting in self._waiting.items():
            while waiting:
                granted, tokens = waiting[0]
                if not granted.done():  # else its request was cancelled
                    taken = self._stream_tokens[priority]
                    if taken and taken + tokens > room:
                        break
                    self._stream_tokens[priority] += tokens
                    granted.set_result(None)
                waiting.popleft()

    def _wait_s(self, slot: Slot) -> float:
        """Returns the estimated seconds until the request is done; 0 if the backlog is too small for an estimate."""
        before, speed = self.tokens, 1.0
        if slot.priority is Priority.INTERACTIVE:
            before, speed = self._tokens[slot.priority], self._limits.interactive_share
        if before < SATURATED_TOKENS or not self._rate:
            return 0.0
        return MARGIN * (before + slot.tokens) / (speed * self._rate)

    def _learn_ratio(self, text_bytes: int, tokens: int) -> None:
        """Updates the tokens-per-byte estimate from texts that were embedded whole."""
        weight = 1 - math.exp(-text_bytes / RATIO_MEMORY_BYTES)
        self._tokens_per_byte += weight * (tokens / text_bytes - self._tokens_per_byte)

    def _learn_rate(self, tokens: float, now_s: float) -> None:
        """Updates the rate from computed tokens, as estimated; call it before their request leaves."""
        if self.tokens < SATURATED_TOKENS:
            return
        if self._measured_from_s == math.inf:
            self._measured_from_s, self._measured_tokens = now_s, 0.0
            return
        self._measured_tokens += tokens
        span_s = now_s - self._measured_from_s
        if span_s >= RATE_SPAN_S:
            rate = self._measured_tokens / span_s
            weight = 1 - math.exp(-span_s / RATE_MEMORY_S) if self._rate is not None else 1.0
            self._rate = (self._rate or 0.0) + weight * (rate - (self._rate or 0.0))
            self._measured_from_s, self._measured_tokens = now_s, 0.0

    def _overloaded(self, message: str, excess_tokens: float, **figures: object) -> OverloadedError:
        """Returns the error; a retry may succeed once `excess_tokens` are done, which leaves the queue half full."""
        retry_s = max(0.0, excess_tokens) / self._rate if self._rate else UNKNOWN_RETRY_S
        retry_s = min(max(retry_s, SHORTEST_RETRY_S), LONGEST_RETRY_S)
        return OverloadedError(message, field="", retry_after_s=retry_s, **figures)
