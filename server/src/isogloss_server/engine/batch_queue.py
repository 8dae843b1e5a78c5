"""Batch queue: the queued texts of one model. Callers share the model fairly, and so do the calls of each caller.

The order of the texts of a caller is that of weighted fair queueing (Demers, Keshav and Shenker, 1989): a text is due
when its call, with an equal share, would have it computed. A batch has texts of similar length. Equal texts of several
calls of a caller are one entry, which is computed once.
"""

import asyncio
import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter
from weakref import ReferenceType, ref

import numpy as np
from isogloss.wire.enums import Priority

from isogloss_server.engine.backlog import LONGEST_TURN_S, Throughput
from isogloss_server.models.interfaces import Progress, Rows, TokenBatch, Urgency
from isogloss_server.tracing import QueuedCall

BULK_SHARE = 8  # while both priorities wait, one batch in BULK_SHARE is of BULK
# While INTERACTIVE calls arrive, BULK is computed in small batches, to keep their wait short. It costs BULK a fifth to
# a third of its speed; smaller batches cost more than they gain.
RECENTLY_S = 1.0
BULK_PIECE_S, BULK_PIECE_TOKENS = 0.010, 128
# While calls with few tokens arrive beside large ones, INTERACTIVE batches are small as well, and while calls of less
# than a batch arrive beside the texts of another caller.
MIXED_PIECE_S, MIXED_PIECE_TOKENS, SHORT_TOKENS = 0.025, 256, 128
SHARED_TOKENS = 512  # below this, splitting a batch over two threads costs more than it gains
WINDOW_BATCHES = 4  # from which a batch takes texts of similar length
# A caller that uses less than CREDIT_PART of its share saves that part as a credit, with which it is served before the
# others. Without that, a call of a quiet caller takes twice as long beside a greedy one as alone.
CREDIT_PART = 0.5
CREDIT_S, CREDIT_BATCHES = 1.0, 8  # most of it: seconds of one thread's work, and batches until the speed is known
MANY_CALLERS = 1024  # queues of callers without texts are removed from this number on
TOKEN_BYTES = 4  # of an id, int32

_length, _due = attrgetter("length"), attrgetter("due")


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """Rows of the n texts of a submission."""

    rows: Rows  # [n, d], as the model scales them
    spans: tuple[tuple[float, float], ...]  # (begin, end) of their batches, moments of the clock


class Submission:
    """Texts that one call has submitted, their rows, and their progress."""

    __slots__ = (
        "__weakref__",
        "caller",
        "deadline_s",
        "dropped",
        "due",
        "future",
        "in_window",
        "missing",
        "progress",
        "queue",
        "rows",
        "spans",
        "texts",
        "traced",
        "waiting",
    )  # fmt: skip

    def __init__(
        self, texts: int, dimensions: int, urgency: Urgency, future: "asyncio.Future[InferenceResult]"
    ) -> None:
        self.rows: Rows = np.empty((texts, dimensions), np.float32)
        self.spans: list[tuple[float, float]] = []
        self.caller = urgency.caller
        self.deadline_s = urgency.deadline_s
        self.progress: Progress | None = urgency.progress
        self.traced: QueuedCall | None = None
        self.future = future  # used only on its event loop
        self.missing = texts  # texts without a row yet
        self.texts = 0  # queued ones
        self.dropped = False  # removed from the queue: its caller needs no rows
        self.waiting: deque[QueuedText] = deque()  # its texts in order, except those in the window; some have left
        self.in_window: set[QueuedText] = set()
        self.due = 0.0  # virtual time at which its next waiting text is due
        self.queue: BatchQueue

    @property
    def call(self) -> object:
        """Identifies the call; a long one has several submissions."""
        return self if self.progress is None else self.progress


class QueuedText:
    """A text that is queued or computed, and the (submission, row) of each call that waits for it.

    Attributes:
        length: Tokens.
        ids: The tokens, int32, as bytes.
        queue: The queue that shares it between calls.
        owners: The submissions and their rows; texts that are being computed accept further ones.
        in_window: True while it may be in the next batches.
        out: True once it has left the queue.
    """

    __slots__ = ("ids", "in_window", "length", "out", "owners", "queue")

    def __init__(self, ids: bytes, length: int, queue: "BatchQueue") -> None:
        self.ids = ids
        self.length = length
        self.queue = queue
        self.owners: list[tuple[Submission, int]] = []
        self.in_window = False
        self.out = False

    @property
    def is_wanted(self) -> bool:
        """True if a call still waits for the text."""
        return not all(submission.dropped for submission, _ in self.owners)


@dataclass(slots=True)
class _Call:
    """Submissions of one call with queued texts, its tokens so far, and the virtual time when they are due."""

    submissions: int = 0
    tokens: int = 0
    due: float = 0.0


class BatchQueue:
    """Queued texts of one caller and priority. Not thread-safe.

    The texts that are due first, as many tokens as WINDOW_BATCHES batches have, form a window; a batch has the first of
    them and those of similar length. So texts of rare lengths are not delayed by a long queue.

    Attributes:
        texts: Queued texts.
        tokens: Their tokens.
        large_calls: Calls with more tokens than a batch.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        """Takes the tokens of a batch; a call with more is large."""
        self.texts = 0
        self.tokens = 0
        self.large_calls = 0
        self._max_batch_tokens = max_batch_tokens
        self._window_tokens = WINDOW_BATCHES * max_batch_tokens
        self._calls: dict[object, _Call] = {}
        self._tokens_in_window = 0
        self._submissions: dict[Submission, None] = {}  # with queued texts
        # Heaps; the numbers make equal times comparable. Texts that have left the queue are skipped when they are due.
        # References to submissions are weak, so that finished ones are freed.
        self._numbers = count()
        self._due: list[tuple[float, int, ReferenceType[Submission]]] = []
        self._window: list[tuple[float, int, QueuedText]] = []
        self._deadlines: list[tuple[float, int, ReferenceType[Submission]]] = []
        self._virtual_time = 0.0  # tokens that each call has had, with an equal share for all
        self._last_due = 0.0  # the latest in the window
        self._by_length: dict[int, OrderedDict[QueuedText, None]] = {}  # of the window; in order, none empty
        self._lengths: list[int] = []  # its keys, ascending
        self._by_ids: dict[bytes, QueuedText] = {}  # queued or being computed

    def put(self, submission: Submission, batch: TokenBatch) -> None:
        """Enqueues the texts of a submission; a text that is queued or being computed already is shared."""
        submission.queue = self
        ids, end = batch.ids.astype(np.int32, copy=False).tobytes(), 0
        for row, length in enumerate(batch.lengths.tolist()):
            start, end = end, end + length * TOKEN_BYTES
            key = ids[start:end]
            entry = self._by_ids.get(key)
            if entry is None:
                entry = self._by_ids[key] = QueuedText(key, length, self)
                self.texts += 1
                self.tokens += length
            entry.owners.append((submission, row))
            if not entry.out:
                submission.waiting.append(entry)
        submission.texts = len(submission.waiting)
        if submission.texts:
            self._submissions[submission] = None
            submission.due = self._begin(submission.call, len(batch.ids))
            self._schedule(submission)
            if submission.deadline_s < math.inf:
                heappush(self._deadlines, (submission.deadline_s, next(self._numbers), ref(submission)))

    def _begin(self, call: object, tokens: int) -> float:
        """Adds a submission to its call; returns the virtual time when its texts begin."""
        state = self._calls.setdefault(call, _Call())
        begin = max(self._virtual_time, state.due)
        self.large_calls += state.tokens <= self._max_batch_tokens < state.tokens + tokens
        state.submissions += 1
        state.tokens += tokens
        state.due = begin + tokens
        return begin

    def _end(self, submission: Submission) -> None:
        """Removes a submission without queued texts."""
        if submission in self._submissions:
            del self._submissions[submission]
            state = self._calls[submission.call]
            state.submissions -= 1
            if not state.submissions:
                del self._calls[submission.call]
                self.large_calls -= state.tokens > self._max_batch_tokens

    def drop(self, submission: Submission) -> None:
        """Removes the queued texts of a submission, except those that other submissions wait for."""
        submission.dropped = True
        for entry in (*submission.waiting, *submission.in_window):
            if entry.out:
                continue
            entry.owners = [owner for owner in entry.owners if owner[0] is not submission]
            if not entry.owners:
                if entry.in_window:
                    same_length = self._by_length[entry.length]
                    del same_length[entry]
                    if not same_length:
                        self._remove_length(entry.length)
                self._take_out(entry)
                del self._by_ids[entry.ids]
        submission.waiting.clear()
        submission.in_window.clear()
        submission.texts = 0
        self._end(submission)

    def drop_all(self) -> list[Submission]:
        """Removes all texts; returns their submissions."""
        waiting = list(self._submissions)
        for submission in waiting:
            self.drop(submission)
        return waiting

    @property
    def is_unused(self) -> bool:
        """True if it has no texts, and none of its texts is being computed."""
        return not self._by_ids

    def forget(self, text: QueuedText) -> None:
        """Ends the sharing of a text whose computation has ended or stalled."""
        if self._by_ids.get(text.ids) is text:
            del self._by_ids[text.ids]

    def take(self, max_tokens: int, *, is_begun: bool = False) -> list[QueuedText]:
        """Returns the texts of the next batch.

        They are the text that is due first, however long it is, and the texts of the window nearest to it in length
        that fit into `max_tokens`. If `is_begun`, other callers have texts in the batch, and a text that does not fit
        waits.
        """
        taken: list[QueuedText] = []
        self._fill_window()
        while self._window and not taken:
            due, _, first = self._window[0]
            if is_begun and first.length > max_tokens and not first.out:
                break
            heappop(self._window)
            if not first.out:
                calls = len(self._calls)
                self._virtual_time = max(self._virtual_time, due - first.length)
                same_length = self._by_length[first.length]
                del same_length[first]
                taken.append(self._remove(first))
                self._fill(taken, first.length, max_tokens - first.length)
                self._virtual_time += _tokens(taken) / calls
        return taken

    def expire(self, now_s: float) -> list[Submission]:
        """Removes and returns the submissions whose deadline has passed."""
        expired: list[Submission] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            submission = heappop(self._deadlines)[2]()
            if submission is not None and submission.texts:
                self.drop(submission)
                expired.append(submission)
        return expired

    def _schedule(self, submission: Submission) -> None:
        """Sets the time at which the next waiting text of a submission is due."""
        while submission.waiting and (submission.waiting[0].out or submission.waiting[0].in_window):
            shared = submission.waiting.popleft()
            if not shared.out:  # another call's text too, which may be due earlier now
                submission.in_window.add(shared)
                submission.due += shared.length
                heappush(self._window, (submission.due, next(self._numbers), shared))
        if submission.waiting:
            submission.due += submission.waiting[0].length
            heappush(self._due, (submission.due, next(self._numbers), ref(submission)))

    def _fill_window(self) -> None:
        """Moves the texts that are due first into the window."""
        while self._due and (self._tokens_in_window < self._window_tokens or self._due[0][0] < self._last_due):
            due, number, reference = heappop(self._due)
            submission = reference()
            if submission is None or not submission.waiting:
                continue
            entry = submission.waiting[0]
            if not (entry.out or entry.in_window):
                submission.waiting.popleft()
                submission.in_window.add(entry)
                entry.in_window = True
                self._tokens_in_window += entry.length
                self._last_due = max(due, self._last_due) if self._by_length else due
                heappush(self._window, (due, number, entry))
                same_length = self._by_length.get(entry.length)
                if same_length is None:
                    same_length = self._by_length[entry.length] = OrderedDict()
                    insort(self._lengths, entry.length)
                same_length[entry] = None
            self._schedule(submission)

    def _fill(self, taken: list[QueuedText], anchor: int, room: int) -> None:
        """Takes texts of the window, by the distance of their length from the anchor's, until none fits."""
        lengths = self._lengths
        emptied = [] if self._by_length[anchor] else [anchor]
        high = bisect_left(lengths, anchor)
        low = high - 1
        while low >= 0 or high < len(lengths):
            upwards = low < 0 or (high < len(lengths) and lengths[high] - anchor <= anchor - lengths[low])
            length = lengths[high if upwards else low]
            same_length = self._by_length[length]
            before = len(same_length)
            while same_length and length <= room:
                taken.append(self._remove(same_length.popitem(last=False)[0]))
                room -= length
            if before and not same_length:
                emptied.append(length)
            if upwards:
                high = high + 1 if length <= room else len(lengths)  # longer texts do not fit either
            else:
                low = min(low - 1, bisect_right(lengths, room) - 1)
        for length in emptied:
            self._remove_length(length)

    def _remove(self, entry: QueuedText) -> QueuedText:
        """Marks an entry as out for all its owners."""
        self._take_out(entry)
        for submission, _ in entry.owners:
            submission.texts -= 1
            submission.in_window.discard(entry)
            if not submission.texts:
                self._end(submission)
        return entry

    def _take_out(self, entry: QueuedText) -> None:
        entry.out = True
        self.texts -= 1
        self.tokens -= entry.length
        if entry.in_window:
            self._tokens_in_window -= entry.length

    def _remove_length(self, length: int) -> None:
        del self._by_length[length]
        del self._lengths[bisect_left(self._lengths, length)]


@dataclass(slots=True, eq=False)
class _Share:
    """A caller's queue and its share of the model.

    Attributes:
        queue: Its texts.
        served: Virtual time up to which it has had its share.
        credit: Tokens by which it is served before its time.
        credited: Virtual time up to which its share has added to the credit.
        credited_s: Moment of the clock up to which it has.
    """

    queue: BatchQueue
    served: float
    credit: float
    credited: float
    credited_s: float = 0.0

    @property
    def due(self) -> float:
        """Virtual time of its next text; the caller with the earliest is next."""
        return self.served - self.credit

    def save(self, virtual_time: float, now_s: float, tokens_per_s: float, most: float) -> None:
        """Adds the saved part of its share since the last time; while the model idles, that of `tokens_per_s`."""
        tokens = max(virtual_time - self.credited, (now_s - self.credited_s) * tokens_per_s)
        self.credit = min(most, self.credit + CREDIT_PART * tokens)
        self.credited, self.credited_s = virtual_time, now_s

    def pay(self, tokens: int) -> None:
        """Counts tokens of a batch."""
        self.credit = max(0.0, self.credit - tokens)
        self.served += tokens


class CallerQueues:
    """Queued texts of one priority, in a queue for each caller. Not thread-safe.

    A batch begins with the texts of the caller that has had the fewest tokens; if there is room, it has texts of the
    next callers too. A caller that is quiet is served at once, up to its credit. What the others leave to a caller is
    not held against it, beyond as many tokens.
    """

    def __init__(self, max_batch_tokens: int, throughput: Throughput) -> None:
        """Takes the tokens of a batch, and the measured speed."""
        self._max_batch_tokens = max_batch_tokens
        self._throughput = throughput
        self._virtual_time = 0.0  # tokens that each caller has had, with an equal share for all
        self._shares: dict[str, _Share] = {}
        self._waiting: dict[str, _Share] = {}  # those with texts; copied where other threads may read
        self._sweep_at = MANY_CALLERS

    @property
    def texts(self) -> int:
        """Queued texts of all callers."""
        return sum(share.queue.texts for share in [*self._waiting.values()])

    @property
    def tokens(self) -> int:
        """Their tokens."""
        return sum(share.queue.tokens for share in [*self._waiting.values()])

    @property
    def callers(self) -> int:
        """Callers with queued texts."""
        return len(self._waiting)

    @property
    def most_credit(self) -> float:
        """The most tokens of a credit."""
        return CREDIT_S * self._throughput.rate or CREDIT_BATCHES * self._max_batch_tokens

    @property
    def large_calls(self) -> int:
        """Calls with more tokens than a batch."""
        return sum(share.queue.large_calls for share in [*self._waiting.values()])

    def put(self, submission: Submission, batch: TokenBatch) -> None:
        """Enqueues the texts of a submission; see `BatchQueue.put`."""
        caller, now = submission.caller, self._virtual_time
        share = self._shares.get(caller)
        if share is None:
            self._sweep()
            share = self._shares[caller] = _Share(BatchQueue(self._max_batch_tokens), now, self.most_credit, now)
        if not share.queue.texts:
            share.served = max(share.served, now)
        share.queue.put(submission, batch)
        if share.queue.texts:
            self._waiting[caller] = share

    def take(self, max_tokens: int, now_s: float) -> tuple[list[QueuedText], list[Submission]]:
        """Returns the texts of the next batch, ascending by length, and the submissions whose deadline has passed."""
        expired = [submission for share in self._waiting.values() for submission in share.queue.expire(now_s)]
        self._remove_empty()
        if not self._waiting:
            return [], expired
        most, tokens_per_s = self.most_credit, self._throughput.rate / len(self._waiting)
        for share in self._waiting.values():
            share.save(self._virtual_time, now_s, tokens_per_s, most)
        taken: list[QueuedText] = []
        in_turn = sorted(self._waiting.values(), key=_due)
        for share in in_turn:
            room = max_tokens - _tokens(taken)
            if room <= 0:
                break
            part = share.queue.take(room, is_begun=bool(taken))
            share.pay(_tokens(part))
            taken += part
        self._virtual_time += _tokens(taken) / len(in_turn)
        # Whoever is served now is owed nothing from before, when others used their credit.
        in_turn[0].served = max(in_turn[0].served, self._virtual_time)
        for share in in_turn:
            share.served = min(share.served, self._virtual_time + most)
        self._remove_empty()
        taken.sort(key=_length)
        return taken, expired

    def drop_all(self) -> list[Submission]:
        """Removes all texts; returns their submissions."""
        return [submission for share in self._waiting.values() for submission in share.queue.drop_all()]

    def _remove_empty(self) -> None:
        for caller in [caller for caller, share in self._waiting.items() if not share.queue.texts]:
            del self._waiting[caller]

    def _sweep(self) -> None:
        """Removes unused queues once there are many, whose callers may never come back."""
        if len(self._shares) >= self._sweep_at:
            self._shares = {caller: share for caller, share in self._shares.items() if not share.queue.is_unused}
            self._sweep_at = max(MANY_CALLERS, 2 * len(self._shares))


class BatchScheduler:
    """The queues of both priorities, and the choice of the next batch. Not thread-safe."""

    def __init__(self, max_batch_tokens: int, throughput: Throughput) -> None:
        """Takes the tokens of a batch, and the measured speed, which sizes batches of BULK."""
        self._max_batch_tokens = max_batch_tokens
        self._throughput = throughput
        self.queues = {priority: CallerQueues(max_batch_tokens, throughput) for priority in Priority}
        self._last_interactive_s = self._last_short_s = self._last_shared_s = -math.inf
        self._passed_over = 0  # batches of INTERACTIVE since the last of BULK, while both waited

    @property
    def texts(self) -> int:
        """Texts that wait for a thread; equal texts count once."""
        return sum(queue.texts for queue in self.queues.values())

    @property
    def tokens(self) -> int:
        """Tokens of those texts."""
        return sum(queue.tokens for queue in self.queues.values())

    def put(self, submission: Submission, batch: TokenBatch, priority: Priority, now_s: float) -> int:
        """Enqueues a submission; returns the number of threads that can share its texts."""
        queue = self.queues[priority]
        queue.put(submission, batch)
        if priority is Priority.INTERACTIVE:
            self._last_interactive_s = now_s
            if len(batch.ids) <= SHORT_TOKENS:
                self._last_short_s = now_s
            if len(batch.ids) <= self._max_batch_tokens and queue.callers > 1:
                self._last_shared_s = now_s
        return 1 + len(batch.ids) // min(SHARED_TOKENS, self._max_batch_tokens)

    def take(self, now_s: float, idle_threads: int) -> tuple[list[QueuedText], list[Submission]]:
        """Takes a batch of the next priority and the expired submissions; idle threads get a share of the work."""
        interactive, bulk = self.queues[Priority.INTERACTIVE], self.queues[Priority.BULK]
        queue = interactive
        if not queue.texts or (bulk.texts and self._passed_over >= BULK_SHARE - 1):
            queue = bulk
        self._passed_over = self._passed_over + 1 if queue is interactive and bulk.texts else 0
        share = max(SHARED_TOKENS, -(-queue.tokens // (idle_threads + 1)))
        if self._throughput.rate:
            share = min(share, max(BULK_PIECE_TOKENS, round(LONGEST_TURN_S * self._throughput.rate)))
        if queue is bulk and now_s - self._last_interactive_s < RECENTLY_S:
            share = max(BULK_PIECE_TOKENS, round(BULK_PIECE_S * self._throughput.rate))
        elif (queue.large_calls and now_s - self._last_short_s < RECENTLY_S) or (
            now_s - self._last_shared_s < RECENTLY_S
        ):
            share = min(share, max(MIXED_PIECE_TOKENS, round(MIXED_PIECE_S * self._throughput.rate)))
        return queue.take(min(self._max_batch_tokens, share), now_s)

    def drop_all(self) -> list[Submission]:
        """Removes all texts; returns their submissions."""
        return [submission for queue in self.queues.values() for submission in queue.drop_all()]


def _tokens(texts: Iterable[QueuedText]) -> int:
    return sum(text.length for text in texts)


def to_token_batch(texts: list[QueuedText]) -> TokenBatch:
    """Returns the tokens of a batch."""
    ids = np.frombuffer(bytearray().join([text.ids for text in texts]), np.int32)
    return TokenBatch(ids, np.array([text.length for text in texts], dtype=np.int64))
