"""Batch queue: the queued texts of one model. Calls share the model fairly; a batch has texts of similar length.

The order is that of weighted fair queueing (Demers, Keshav and Shenker, 1989): a text is due when its call, with an
equal share of the model, would have it computed. Equal texts of several calls are one entry, which is computed once.
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
# While calls with few tokens arrive beside large ones, INTERACTIVE batches are small as well.
MIXED_PIECE_S, MIXED_PIECE_TOKENS, SHORT_TOKENS = 0.025, 256, 128
SHARED_TOKENS = 512  # below this, splitting a batch over two threads costs more than it gains
WINDOW_BATCHES = 4  # from which a batch takes texts of similar length
TOKEN_BYTES = 4  # of an id, int32

_length = attrgetter("length")


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """Rows of the n texts of a submission."""

    rows: Rows  # [n, d], as the model scales them
    spans: tuple[tuple[float, float], ...]  # (begin, end) of their batches, moments of the clock


class Submission:
    """Texts that one call has submitted, their rows, and their progress."""

    __slots__ = (
        "__weakref__",
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
        owners: The submissions and their rows; texts that are being computed accept further ones.
        in_window: True while it may be in the next batches.
        out: True once it has left the queue.
    """

    __slots__ = ("ids", "in_window", "length", "out", "owners")

    def __init__(self, ids: bytes, length: int) -> None:
        self.ids = ids
        self.length = length
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
    """Queued texts of one priority. Not thread-safe.

    The texts that are due first, as many tokens as WINDOW_BATCHES batches have, form a window; a batch has the first of
    them and those of similar length. So texts of rare lengths are not delayed by a long queue.
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
                entry = self._by_ids[key] = QueuedText(key, length)
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

    def forget(self, texts: Iterable[QueuedText]) -> None:
        """Ends the sharing of texts whose computation has ended or stalled."""
        for text in texts:
            if self._by_ids.get(text.ids) is text:
                del self._by_ids[text.ids]

    def take(self, max_tokens: int, now_s: float) -> tuple[list[QueuedText], list[Submission]]:
        """Returns the texts of the next batch, ascending by length, and the submissions whose deadline has passed.

        The batch has the text that is due first, however long it is, and the texts of the window nearest to it in
        length that fit into `max_tokens`.
        """
        expired = self._expired(now_s)
        taken: list[QueuedText] = []
        self._fill_window()
        while self._window and not taken:
            due, _, first = heappop(self._window)
            if not first.out:
                calls = len(self._calls)
                self._virtual_time = max(self._virtual_time, due - first.length)
                same_length = self._by_length[first.length]
                del same_length[first]
                taken.append(self._remove(first))
                self._fill(taken, first.length, max_tokens - first.length)
                self._virtual_time += sum(text.length for text in taken) / calls
        taken.sort(key=_length)
        return taken, expired

    def _expired(self, now_s: float) -> list[Submission]:
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


class BatchScheduler:
    """The queues of both priorities, and the choice of the next batch. Not thread-safe."""

    def __init__(self, max_batch_tokens: int, throughput: Throughput) -> None:
        """Takes the tokens of a batch, and the measured speed, which sizes batches of BULK."""
        self._max_batch_tokens = max_batch_tokens
        self._throughput = throughput
        self.queues = {priority: BatchQueue(max_batch_tokens) for priority in Priority}
        self._last_interactive_s = self._last_short_s = -math.inf
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
        self.queues[priority].put(submission, batch)
        if priority is Priority.INTERACTIVE:
            self._last_interactive_s = now_s
            if len(batch.ids) <= SHORT_TOKENS:
                self._last_short_s = now_s
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
        elif queue.large_calls and now_s - self._last_short_s < RECENTLY_S:
            share = min(share, max(MIXED_PIECE_TOKENS, round(MIXED_PIECE_S * self._throughput.rate)))
        return queue.take(min(self._max_batch_tokens, share), now_s)

    def drop_all(self) -> list[Submission]:
        """Removes all texts; returns their submissions."""
        return [submission for queue in self.queues.values() for submission in queue.drop_all()]


def to_token_batch(texts: list[QueuedText]) -> TokenBatch:
    """Returns the tokens of a batch."""
    ids = np.frombuffer(bytearray().join([text.ids for text in texts]), np.int32)
    return TokenBatch(ids, np.array([text.length for text in texts], dtype=np.int64))
