"""How much of a model's work may wait: what there is no room or no time for is refused at once."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from isogloss.wire.enums import Priority

from isogloss_server.engine.batcher import BULK_SHARE
from isogloss_server.errors import OverloadedError
from isogloss_server.models.interfaces import Urgency

TOKENS_PER_BYTE = 0.3  # of UTF-8, until a model has told its own
RATIO_MEMORY_BYTES = 100_000  # what was read so long ago counts for a third
RATE_MEMORY_S = 5.0  # likewise
RATE_SPAN_S = 0.25  # of one measurement
SATURATED_TOKENS = 4_096  # with less work at hand, the rate says how fast callers ask, not how fast the model is
MARGIN = 1.5  # a job that ends after its deadline was computed for nobody; one that is refused was not
UNKNOWN_RETRY_S = 1.0
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.05, 60.0
BULK_PART = 2  # BULK may take up one part in so many of the room; streams, as much again of that
INTERACTIVE_SPEED = 1 - 1 / BULK_SHARE  # of the model's, while BULK waits too


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job takes: an estimate of its tokens, and the bytes of its texts and vectors."""

    tokens: int
    bytes: int


class Admission:
    """The room of one model's queue. What is in it waits or is being computed.

    A call that finds no room is refused. A stream's request waits for room, while its stream is not read further than
    its window; streams have room of their own in each lane, so that neither kind of caller keeps the other out, nor
    BULK anybody. An empty queue takes anything that the limits of one request admit.
    """

    def __init__(self, max_tokens: int = 1 << 18, max_bytes: int = 1 << 27) -> None:
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._tokens = dict.fromkeys(Priority, 0)
        self._bytes = dict.fromkeys(Priority, 0)
        self._patient_tokens = dict.fromkeys(Priority, 0)  # of those, the streams'
        # Who waits for room, and with how many tokens; INTERACTIVE first.
        self._patient: dict[Priority, deque[tuple[asyncio.Future[None], int]]] = {lane: deque() for lane in Priority}
        self._tokens_per_byte = TOKENS_PER_BYTE
        self._rate: float | None = None  # tokens a second
        self._measured_from_s = math.inf
        self._measured_tokens = 0.0

    @property
    def tokens(self) -> int:
        """How many tokens wait or are being computed."""
        return sum(self._tokens.values())

    def estimate(self, text_bytes: int, texts: int, max_tokens: int) -> int:
        """Returns the tokens of texts that have so many bytes of UTF-8, where one has at most `max_tokens`; 0: any."""
        tokens = math.ceil(text_bytes * self._tokens_per_byte)
        return min(tokens, texts * max_tokens) if max_tokens else tokens

    def enter(self, cost: Cost, urgency: Urgency, now_s: float) -> None:
        """Takes a job in; `leave` must be called once it has ended.

        Raises:
            OverloadedError: there is no room for it, or it cannot be done before its deadline.
        """
        room = self._max_tokens // (BULK_PART if urgency.priority is Priority.BULK else 1)
        waiting = self.tokens
        # Of more than half the room no more is asked for, or large jobs would wait for a moment when nobody else works.
        needed = min(cost.tokens, room // 2)
        if waiting and waiting + needed > room:
            excess = waiting + needed - room // 2
            raise self._overloaded("the queue is full", excess, waiting_tokens=waiting, limit=room)
        self._check_bytes(cost, urgency.priority)
        wait_s = self._wait_s(cost, urgency.priority)
        if wait_s and now_s + wait_s >= urgency.deadline_s:
            message = f"it might take {wait_s:.1f} s, and the deadline is in {urgency.deadline_s - now_s:.1f} s"
            raise self._overloaded(message, waiting / 2, waiting_tokens=waiting)
        self._take(cost, urgency.priority)

    def enter_known(self, cost: Cost, priority: Priority) -> None:
        """Takes in a job that is answered without the model, and so without regard to tokens and time.

        Raises:
            OverloadedError: there is no memory for it.
        """
        self._check_bytes(cost, priority)
        self._take(cost, priority)

    async def enter_patiently(self, cost: Cost, priority: Priority) -> None:
        """Takes in a stream's request as soon as there is room; `leave` must be called once it has ended.

        Raises:
            OverloadedError: there is no memory for letting it wait.
        """
        self._check_bytes(cost, priority)
        self._bytes[priority] += cost.bytes
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._patient[priority].append((room, cost.tokens))
        self._let_in()
        try:
            await room
        except asyncio.CancelledError:
            self._bytes[priority] -= cost.bytes
            if room.done() and not room.cancelled():
                self._patient_tokens[priority] -= cost.tokens
            self._let_in()
            raise
        self._tokens[priority] += cost.tokens

    def leave(self, cost: Cost, priority: Priority, *, patient: bool) -> None:
        """Makes room for others."""
        self._tokens[priority] -= cost.tokens
        self._bytes[priority] -= cost.bytes
        if patient:
            self._patient_tokens[priority] -= cost.tokens
        if self.tokens < SATURATED_TOKENS:
            self._measured_from_s = math.inf  # the time until there is more to do is nobody's work
        self._let_in()

    def learn_ratio(self, text_bytes: int, tokens: int) -> None:
        """Takes note of how many tokens so many bytes of text had, of which none were cut off."""
        weight = 1 - math.exp(-text_bytes / RATIO_MEMORY_BYTES)
        self._tokens_per_byte += weight * (tokens / text_bytes - self._tokens_per_byte)

    def learn_rate(self, tokens: float, now_s: float) -> None:
        """Takes note, before their job leaves, that so many tokens, by the estimate, have been computed."""
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

    def _take(self, cost: Cost, priority: Priority) -> None:
        self._tokens[priority] += cost.tokens
        self._bytes[priority] += cost.bytes

    def _check_bytes(self, cost: Cost, priority: Priority) -> None:
        waiting = sum(self._bytes.values())
        if priority is Priority.BULK:
            held, limit = self._bytes[priority], self._max_bytes // BULK_PART
        else:
            held, limit = waiting, self._max_bytes
        if held and held + cost.bytes > limit:
            message = "the memory for waiting work is full"
            raise self._overloaded(message, self.tokens // 2, waiting_bytes=waiting, limit=limit)

    def _is_too_much(self, tokens: int, lane: Priority) -> bool:
        room = self._max_tokens // BULK_PART // 2
        return self._patient_tokens[lane] > 0 and self._patient_tokens[lane] + tokens > room

    def _let_in(self) -> None:
        for lane, waiting in self._patient.items():
            while waiting:
                room, tokens = waiting[0]
                if not room.done():  # else it was cancelled
                    if self._is_too_much(tokens, lane):
                        break
                    self._patient_tokens[lane] += tokens
                    room.set_result(None)
                waiting.popleft()

    def _wait_s(self, cost: Cost, priority: Priority) -> float:
        """Returns how long it might take until a job is done; 0 where so little is at hand that nobody knows."""
        before, speed = self.tokens, 1.0
        if priority is Priority.INTERACTIVE:
            before, speed = self._tokens[priority], INTERACTIVE_SPEED
        if before < SATURATED_TOKENS or not self._rate:
            return 0.0
        return MARGIN * (before + cost.tokens) / (speed * self._rate)

    def _overloaded(self, message: str, excess_tokens: float, **figures: object) -> OverloadedError:
        """Returns the error; another try may help once so many tokens are done, which leaves the queue half full."""
        retry_s = max(0.0, excess_tokens) / self._rate if self._rate else UNKNOWN_RETRY_S
        retry_s = min(max(retry_s, SHORTEST_RETRY_S), LONGEST_RETRY_S)
        return OverloadedError(message, field="", retry_after_s=retry_s, **figures)
