"""Batch queue: the queued texts of one priority. Calls are served round-robin, with texts of similar length."""

import asyncio
import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, count
from operator import itemgetter
from typing import NamedTuple
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.interfaces import Rows, TokenBatch

_length = itemgetter(0)  # of a Text


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
        "ends",
        "entries",
        "future",
        "ids",
        "lengths",
        "missing",
        "queue",
        "rows",
        "spans",
        "texts",
        "tokens",
    )  # fmt: skip

    def __init__(
        self, batch: TokenBatch, dimensions: int, deadline_s: float, future: "asyncio.Future[InferenceResult]"
    ) -> None:
        self.ids = batch.ids
        self.lengths: list[int] = batch.lengths.tolist()
        self.ends = list(accumulate(self.lengths))
        self.rows: Rows = np.empty((len(self.lengths), dimensions), np.float32)
        self.spans: list[tuple[float, float]] = []
        self.deadline_s = deadline_s
        self.future = future  # used only on its event loop
        self.missing = len(self.lengths)  # texts without a row yet
        self.texts, self.tokens = len(self.lengths), len(self.ids)  # queued ones
        self.dropped = False  # removed from the queue: its caller needs no rows
        self.entries: deque[_Entry] = deque()  # its texts in order; texts that have left the queue are marked
        self.queue: BatchQueue

    def ids_of(self, row: int) -> NDArray[np.int32]:
        """Returns the tokens of one text, int32 [its length]."""
        end = self.ends[row]
        return self.ids[end - self.lengths[row] : end]


class QueuedText(NamedTuple):
    """A text of a batch; texts sort by length."""

    length: int
    row: int
    submission: Submission


class _Entry:
    """A queued text; `out` once it has left the queue."""

    __slots__ = ("length", "out", "row", "submission")

    def __init__(self, length: int, row: int, submission: Submission) -> None:
        self.length = length
        self.row = row
        self.submission = submission
        self.out = False


class BatchQueue:
    """Queued texts of one priority. Not thread-safe."""

    def __init__(self) -> None:
        self.texts = 0
        self.tokens = 0
        # The next batch starts with the oldest text of the first submission.
        self._round_robin: OrderedDict[Submission, None] = OrderedDict()
        # A heap of weak references, which do not keep finished submissions alive; the number makes entries comparable.
        self._deadlines: list[tuple[float, int, ReferenceType[Submission]]] = []
        self._numbers = count()
        self._by_length: dict[int, OrderedDict[_Entry, None]] = {}  # in order of arrival; none empty
        self._lengths: list[int] = []  # its keys, ascending

    def put(self, submission: Submission) -> None:
        """Enqueues all texts of a submission."""
        submission.queue = self
        for row, length in enumerate(submission.lengths):
            entry = _Entry(length, row, submission)
            same_length = self._by_length.get(length)
            if same_length is None:
                same_length = self._by_length[length] = OrderedDict()
                insort(self._lengths, length)
            same_length[entry] = None
            submission.entries.append(entry)
        self._round_robin[submission] = None
        if submission.deadline_s < math.inf:
            heappush(self._deadlines, (submission.deadline_s, next(self._numbers), ref(submission)))
        self.texts += submission.texts
        self.tokens += submission.tokens

    def drop(self, submission: Submission) -> None:
        """Removes the queued texts of a submission."""
        submission.dropped = True
        for entry in [entry for entry in submission.entries if not entry.out]:
            same_length = self._by_length[entry.length]
            del same_length[entry]
            self._remove(entry)
            if not same_length:
                self._remove_length(entry.length)

    def drop_all(self) -> list[Submission]:
        """Removes all texts; returns their submissions."""
        waiting = list(self._round_robin)
        for submission in waiting:
            self.drop(submission)
        return waiting

    def take(self, max_tokens: int, now_s: float) -> tuple[list[QueuedText], list[Submission]]:
        """Returns the texts of the next batch, ascending by length, and the submissions whose deadline has passed.

        The batch has the oldest text of the submission that is next, however long it is, and the texts nearest to it
        in length that fit into `max_tokens`.
        """
        expired = self._expired(now_s)
        taken: list[QueuedText] = []
        if self._round_robin:
            submission = next(iter(self._round_robin))
            self._round_robin.move_to_end(submission)
            first = next(entry for entry in submission.entries if not entry.out)
            del self._by_length[first.length][first]
            taken.append(self._remove(first))
            self._fill(taken, first.length, max_tokens - first.length)
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

    def _fill(self, taken: list[QueuedText], anchor: int, room: int) -> None:
        """Takes texts, by the distance of their length from the anchor's, until none fits."""
        lengths, emptied = self._lengths, []
        high = bisect_left(lengths, anchor)
        low = high - 1
        while low >= 0 or high < len(lengths):
            upwards = low < 0 or (high < len(lengths) and lengths[high] - anchor <= anchor - lengths[low])
            length = lengths[high if upwards else low]
            same_length = self._by_length[length]
            while same_length and length <= room:
                taken.append(self._remove(same_length.popitem(last=False)[0]))
                room -= length
            if not same_length:
                emptied.append(length)
            if upwards:
                high = high + 1 if length <= room else len(lengths)  # longer texts do not fit either
            else:
                low = min(low - 1, bisect_right(lengths, room) - 1)
        for length in emptied:
            self._remove_length(length)

    def _remove(self, entry: _Entry) -> QueuedText:
        submission, entry.out = entry.submission, True
        submission.texts -= 1
        submission.tokens -= entry.length
        self.texts -= 1
        self.tokens -= entry.length
        while submission.entries and submission.entries[0].out:
            submission.entries.popleft()
        if not submission.texts:
            del self._round_robin[submission]
        return QueuedText(entry.length, entry.row, submission)

    def _remove_length(self, length: int) -> None:
        del self._by_length[length]
        del self._lengths[bisect_left(self._lengths, length)]
