"""Admission: the only place that waits for, or refuses, a slot before the model.

A request is refused if the work that will really run before its end takes longer than its deadline, or than the limit
of the queue. Callers share a model equally, and so do the requests of each, so that a short one does not wait for all
of a long one. Memory is bounded in bytes.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from isogloss.wire.enums import Priority

from isogloss_server import metrics, tracing
from isogloss_server.clock import Clock
from isogloss_server.engine.backlog import Backlog, Work
from isogloss_server.engine.request import EmbedRequest, RequestSize, SimilarityRequest
from isogloss_server.errors import DeadlineExceededError, OverloadedError
from isogloss_server.fair_queue import CallerQueue, FairSemaphore
from isogloss_server.models.interfaces import Embedded, ModelCard

INITIAL_TOKENS_PER_BYTE = 0.3  # of UTF-8, until texts of the model have been measured
# Bounds of the measured ratio: tokenizers make at most about a token of each byte, and words have few bytes.
FEWEST_TOKENS_PER_BYTE, MOST_TOKENS_PER_BYTE = 0.1, 1.0
RATIO_WEIGHT = 0.02  # of one request, whatever its size, so that no text determines the ratio
MARGIN = 1.25  # safety factor: a late response wastes capacity
UNKNOWN_RETRY_S = 1.0
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.05, 5.0
RETRY_PART = 4  # a retry is due in the first 1 / RETRY_PART of the remaining time
SMALL_BYTES = 64 * 1024  # of a request that may use all memory for queued requests; a larger one LARGE_SHARE of it
LARGE_SHARE = 0.9
BULK_PART = 2  # BULK may take 1 / BULK_PART of the queue
STREAM_S = 2.0  # seconds of work that the streams of one priority may have in the queue
STREAM_TURNS = 8  # likewise, until the speed is known
PAST_DEADLINE = "the deadline passed before the model was reached"

Request = EmbedRequest | SimilarityRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds of one model's queue.

    Attributes:
        max_wait_s: Estimated seconds that other requests' work may delay a request.
        max_bytes: Bytes of the texts, vectors and rows of queued requests.
        bulk_slots: BULK requests that may run at a time: few if each computes by itself, many if their texts
            meet in a batch queue that knows priorities.
    """

    max_wait_s: float = 30.0
    max_bytes: int = 1 << 27
    bulk_slots: int = 1


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one admitted request; call `record` with every result of the embedder for it.

    It receives the progress of the request, see `models.interfaces.Progress`.

    Attributes:
        request: The request.
        size: Its texts, bytes and pairs.
        tokens: Its tokens, estimated until they are known.
        units: Its work in the model's backlog, as estimated on arrival.
        memory_bytes: Bytes of its texts, its vectors and its rows.
        waited_s: Seconds that it waited for the slot.
    """

    request: Request = field(repr=False)  # with texts of the caller
    size: RequestSize
    tokens: float
    units: float
    memory_bytes: int
    waited_s: float = 0.0
    work: Work | None = None
    comparison: Work | None = None
    bulk_slot: asyncio.Future[None] | None = None
    untokenized_sides: int = 0
    tokenized_tokens: int = 0
    total_tokens: int = 0
    is_typical: bool = True  # whether all its bytes became tokens

    @property
    def priority(self) -> Priority:
        """The priority of the request."""
        return self.request.priority

    def tokenized(self, tokens: int, *, is_last: bool) -> None:
        """Replaces the estimate by the number of tokens, at the latest when all texts are tokenized."""
        self.tokenized_tokens += tokens
        self.untokenized_sides -= is_last
        known = max(self.tokenized_tokens, self.tokens) if self.untokenized_sides else self.tokenized_tokens
        if self.work is not None:
            self.work.set(max(0.0, self.work.units + known - self.tokens))
        self.tokens = known

    def computed(self, tokens: int) -> None:
        """Removes computed tokens from the work that is left."""
        if self.work is not None:
            self.work.backlog.report(self.work, tokens)

    def record(self, embedded: Embedded) -> None:
        """Counts the tokens of the request, for the estimate of later ones."""
        self.total_tokens += embedded.total_tokens
        # The bytes of a truncated, failed or cached text were not all turned into tokens.
        self.is_typical &= not (embedded.truncated_rows or embedded.row_errors or embedded.cached_rows)


class Admission:
    """Slots of one model's queue, which contains the requests that wait and those that are being computed.

    A queue without other requests admits every request that passes the limits of one request. Until the speed has been
    measured, only memory is bounded.
    """

    def __init__(
        self,
        name: str,
        card: ModelCard,
        limits: AdmissionLimits,
        clock: Clock,
        backlog: Backlog,
        comparisons: Backlog | None = None,
    ) -> None:
        """Creates an empty queue.

        Args:
            name: Name of the model, for metrics.
            card: Its card, for the sizes of rows and texts.
            limits: The bounds.
            clock: The clock.
            backlog: The model's work, in tokens, or in calls for a provider's model.
            comparisons: The comparisons of all models, in products of two numbers.
        """
        self._name = name
        self.card = card
        self._limits = limits
        self._clock = clock
        self._backlog = backlog
        self._comparisons = comparisons
        self.texts = 0  # of requests that wait or are computed
        self._slots: set[Slot] = set()
        self._bytes = dict.fromkeys(Priority, 0)
        self._caller_bytes: Counter[str] = Counter()
        self._stream_units = dict.fromkeys(Priority, 0.0)
        # Requests of streams that wait for room, with their units; INTERACTIVE first.
        self._waiting: dict[Priority, CallerQueue[tuple[asyncio.Future[None], float]]]
        self._waiting = {priority: CallerQueue() for priority in Priority}
        self._bulk_slots = FairSemaphore(limits.bulk_slots)
        self._tokens_per_byte = INITIAL_TOKENS_PER_BYTE

    @property
    def tokens(self) -> int:
        """Tokens of requests that wait or are computed, estimated until they are known."""
        return math.ceil(sum(slot.tokens for slot in self._slots))

    def queued_tokens(self, priority: Priority) -> int:
        """Returns the part of `tokens` that one priority has; safe from any thread."""
        return math.ceil(sum(slot.tokens for slot in self._slots.copy() if slot.priority is priority))

    def queued_bytes(self, priority: Priority) -> int:
        """Returns the bytes of texts, vectors and rows of one priority's requests; safe from any thread."""
        return self._bytes[priority]

    def admit(self, request: Request, is_cached: Callable[[], bool] = lambda: False) -> "Admitted":
        """Returns a context manager that holds a slot for a checked request, whose texts count as queued meanwhile.

        Args:
            request: The request.
            is_cached: Returns whether all its texts are cached; called only if the request would be refused.

        Raises:
            OverloadedError: on entry, if the request does not fit, or cannot finish before its deadline.
            DeadlineExceededError: on entry, if the deadline passed while the request waited.
        """
        return Admitted(self, request, is_cached)

    def estimate_tokens(self, text_bytes: int, texts: int) -> int:
        """Returns the estimated tokens of `texts` texts of `text_bytes` bytes of UTF-8 together."""
        tokens = math.ceil(text_bytes * self._tokens_per_byte)
        most = self.card.max_tokens
        return min(tokens, texts * most) if most else tokens

    async def enter(self, request: Request, size: RequestSize, is_cached: Callable[[], bool]) -> Slot:
        """Returns a slot for a request; see `admit`, which frees it too."""
        if tracing.current() is None:
            return await self._enter(request, size, is_cached)
        with tracing.timed("admission", self._clock):
            return await self._enter(request, size, is_cached)

    async def _enter(self, request: Request, size: RequestSize, is_cached: Callable[[], bool]) -> Slot:
        began_s = self._clock.monotonic_s()
        if began_s >= request.deadline_s:
            raise DeadlineExceededError(PAST_DEADLINE)
        slot = self._slot(request, size)
        try:
            self._check_bytes(slot)
            if not request.from_stream:
                self._check_wait(slot, request.deadline_s - began_s, is_cached)
        except OverloadedError:
            metrics.ADMISSION_REFUSALS.labels(self._name, slot.priority.value).inc()
            raise
        self._slots.add(slot)
        self._bytes[slot.priority] += slot.memory_bytes
        self._caller_bytes[request.caller] += slot.memory_bytes
        try:
            if request.from_stream:
                await self._wait_for_room(slot)
            self._add_work(slot)
            if slot.priority is Priority.BULK and not request.from_stream:
                slot.bulk_slot = self._bulk_slots.request(request.caller)
                await slot.bulk_slot
        except BaseException:
            self._release(slot)
            raise
        entered_s = self._clock.monotonic_s()
        slot.waited_s = entered_s - began_s
        if entered_s >= request.deadline_s:
            self.leave(slot)
            raise DeadlineExceededError(PAST_DEADLINE)
        return slot

    def leave(self, slot: Slot) -> None:
        """Frees a slot."""
        self._release(slot)
        if slot.request.from_stream:
            self._stream_units[slot.priority] -= slot.units
            self._grant_room()
        if slot.total_tokens and slot.is_typical:
            self._learn_ratio(slot.size.text_bytes, slot.total_tokens)

    def _slot(self, request: Request, size: RequestSize) -> Slot:
        tokens = self.estimate_tokens(size.text_bytes, size.texts)
        per_call = self.card.texts_per_call
        return Slot(
            request,
            size,
            tokens,
            -(-size.texts // per_call) if per_call else tokens,
            size.text_bytes + size.vector_bytes + 4 * size.texts * self.card.dimensions[0],
            untokenized_sides=size.text_sides,
        )

    def _add_work(self, slot: Slot) -> None:
        now_s, caller = self._clock.monotonic_s(), slot.request.caller
        slot.work = self._backlog.add(slot.priority, slot.units, now_s, caller)
        if slot.size.products and self._comparisons is not None:
            slot.comparison = self._comparisons.add(slot.priority, slot.size.products, now_s, caller)

    def _release(self, slot: Slot) -> None:
        self._slots.discard(slot)
        self._bytes[slot.priority] -= slot.memory_bytes
        self._caller_bytes[slot.request.caller] -= slot.memory_bytes
        if not self._caller_bytes[slot.request.caller]:
            del self._caller_bytes[slot.request.caller]
        if slot.bulk_slot is not None:
            self._bulk_slots.release(slot.bulk_slot)
        for work in (slot.work, slot.comparison):
            if work is not None:
                work.close()

    def _check_wait(self, slot: Slot, remaining_s: float, is_cached: Callable[[], bool]) -> None:
        """Raises OverloadedError if other requests' work delays the request too long."""
        try:
            self._check_estimate(slot, remaining_s)
        except OverloadedError:
            if not slot.size.texts or not is_cached():
                raise
            slot.units = slot.tokens = 0
            self._check_estimate(slot, remaining_s)

    def _check_estimate(self, slot: Slot, remaining_s: float) -> None:
        others_s = total_s = 0.0
        for backlog, units in ((self._backlog, slot.units), (self._comparisons, slot.size.products)):
            if backlog is not None and units and backlog.is_busy:
                now_s, caller = self._clock.monotonic_s(), slot.request.caller
                estimate = backlog.estimate(slot.priority, units, now_s, caller)
                others_s, total_s = others_s + estimate.others_s, total_s + estimate.total_s
        limit_s = self._limits.max_wait_s / (BULK_PART if slot.priority is Priority.BULK else 1)
        if others_s > limit_s:
            message = f"the queue is full: estimated wait {others_s:.1f} s, the limit is {limit_s:g} s"
            raise self._overloaded(message, others_s - limit_s / 2, remaining_s, limit=limit_s)
        total_s *= MARGIN
        if total_s and total_s >= remaining_s:
            message = f"estimated time {total_s:.1f} s exceeds the remaining {remaining_s:.1f} s"
            raise self._overloaded(message, total_s - remaining_s, remaining_s)

    def _check_bytes(self, slot: Slot) -> None:
        """Raises OverloadedError if the memory for queued requests is full."""
        queued = sum(self._bytes.values())
        if slot.priority is Priority.BULK:
            used, limit = self._bytes[slot.priority], self._limits.max_bytes // BULK_PART
        else:
            share = LARGE_SHARE if slot.memory_bytes > SMALL_BYTES else 1.0
            used, limit = queued, int(share * self._limits.max_bytes)
        # A known caller leaves as much memory free as it has, for the others.
        own = self._caller_bytes[slot.request.caller] if slot.request.caller else 0
        if used and used + slot.memory_bytes + own > limit:
            message = "the memory for queued requests is full"
            speed = self._backlog.speed
            retry_s = self._backlog.total() / 2 / speed if speed else UNKNOWN_RETRY_S
            remaining_s = slot.request.deadline_s - self._clock.monotonic_s()
            raise self._overloaded(message, retry_s, remaining_s, waiting_bytes=queued, limit=limit)

    async def _wait_for_room(self, slot: Slot) -> None:
        """Returns as soon as there is room for a stream's request."""
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[slot.priority].put(slot.request.caller, (room, slot.units))
        self._grant_room()
        try:
            await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled():
                self._stream_units[slot.priority] -= slot.units
            self._grant_room()
            raise

    def _grant_room(self) -> None:
        """Admits waiting requests of streams, in order, while there is room for them."""
        room = STREAM_S * self._backlog.speed or STREAM_TURNS * self._backlog.turn
        for priority, waiting in self._waiting.items():
            while waiting:
                granted, units = waiting.first()
                if not granted.done():  # else its request was cancelled
                    taken = self._stream_units[priority]
                    if taken and taken + units > room:
                        break
                    self._stream_units[priority] += units
                    granted.set_result(None)
                waiting.pop()

    def _learn_ratio(self, text_bytes: int, tokens: int) -> None:
        """Updates the tokens-per-byte estimate from texts that were embedded whole."""
        ratio = min(max(tokens / text_bytes, FEWEST_TOKENS_PER_BYTE), MOST_TOKENS_PER_BYTE)
        self._tokens_per_byte += RATIO_WEIGHT * (ratio - self._tokens_per_byte)

    def _overloaded(self, message: str, retry_s: float, remaining_s: float, **figures: object) -> OverloadedError:
        """Returns the error; a retry may succeed after `retry_s`, and is due well before the deadline."""
        retry_s = min(max(retry_s, SHORTEST_RETRY_S), LONGEST_RETRY_S, remaining_s / RETRY_PART)
        return OverloadedError(message, field="", retry_after_s=retry_s, waiting_tokens=self.tokens, **figures)


class Admitted:
    """Holds the slot of one request; see `Admission.admit`."""

    __slots__ = ("_admission", "_is_cached", "_request", "_size", "_slot")

    def __init__(self, admission: Admission, request: Request, is_cached: Callable[[], bool]) -> None:
        self._admission = admission
        self._request = request
        self._is_cached = is_cached
        self._size = request.size(admission.card)
        self._slot: Slot

    async def __aenter__(self) -> Slot:
        self._admission.texts += self._size.texts
        try:
            self._slot = await self._admission.enter(self._request, self._size, self._is_cached)
        except BaseException:
            self._admission.texts -= self._size.texts
            raise
        return self._slot

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.texts -= self._size.texts
        self._admission.leave(self._slot)
