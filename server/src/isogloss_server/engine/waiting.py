"""The texts of one lane that wait for a model: taken oldest first, with those nearest to it in length."""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.base import Rows, TokenBatch

_length = itemgetter(0)  # of a Text


@dataclass(frozen=True, slots=True)
class Computed:
    """What became of the n texts of a submission."""

    rows: Rows  # [n, d], as the model scales them
    spans: tuple[tuple[float, float], ...]  # of the batches that they were in: moments of the clock


class Submission:
    """What one caller has in the queue: its tokens, the rows that come of them, and how far they are."""

    __slots__ = (
        "deadline_s", "ends", "future", "gone", "ids", "lane", "lengths", "missing", "rows", "spans", "texts", "tokens"
    )  # fmt: skip

    def __init__(
        self, batch: TokenBatch, dimensions: int, deadline_s: float, future: "asyncio.Future[Computed]"
    ) -> None:
        self.ids = batch.ids
        self.lengths: list[int] = batch.lengths.tolist()
        self.ends = list(accumulate(self.lengths))
        self.rows: Rows = np.empty((len(self.lengths), dimensions), np.float32)
        self.spans: list[tuple[float, float]] = []
        self.deadline_s = deadline_s
        self.future = future  # touched on its loop alone
        self.missing = len(self.lengths)  # texts without a row yet
        self.texts, self.tokens = len(self.lengths), len(self.ids)  # that wait
        self.gone = False  # nobody waits for it any more
        self.lane: Waiting

    def ids_of(self, row: int) -> NDArray[np.int32]:
        """Returns the tokens of one text, int32 [its length]."""
        end = self.ends[row]
        return self.ids[end - self.lengths[row] : end]


class Text(NamedTuple):
    """One text that was taken; they sort by length."""

    length: int
    row: int
    submission: Submission


class _Entry:
    """One text that waits; once it is out it knows no submission any more."""

    __slots__ = ("length", "row", "submission")

    def __init__(self, length: int, row: int, submission: Submission) -> None:
        self.length = length
        self.row = row
        self.submission: Submission | None = submission


class Waiting:
    """One lane; to be touched by one thread at a time.

    A text stands in the order of arrival and in that of its length. Texts of a submission that is gone count no
    longer; they themselves leave when one comes upon them, at the latest as the oldest.
    """

    def __init__(self) -> None:
        self.texts = 0
        self.tokens = 0
        self._arrivals: deque[_Entry] = deque()  # some of which are out
        self._alike: dict[int, deque[_Entry]] = {}  # by length, in order of arrival; none empty
        self._lengths: list[int] = []  # its keys, ascending

    def put(self, submission: Submission) -> None:
        """Lets every text of a submission wait."""
        submission.lane = self
        for row, length in enumerate(submission.lengths):
            entry = _Entry(length, row, submission)
            alike = self._alike.get(length)
            if alike is None:
                alike = self._alike[length] = deque()
                insort(self._lengths, length)
            alike.append(entry)
            self._arrivals.append(entry)
        self.texts += submission.texts
        self.tokens += submission.tokens

    def drop(self, submission: Submission) -> None:
        """Gives up what waits of a submission."""
        self._give_up(submission)
        if not self.texts:
            self._clear()

    def drop_all(self) -> list[Submission]:
        """Gives up all that waits; returns the submissions."""
        waiting = {entry.submission for entry in self._arrivals if entry.submission and not entry.submission.gone}
        for submission in waiting:
            self.drop(submission)
        return list(waiting)

    def take(self, max_tokens: int, now_s: float) -> tuple[list[Text], list[Submission]]:
        """Returns the texts of the next batch, ascending by length, and the submissions whose time is up.

        The oldest text is among them, however long it is; the others are those nearest to it in length that fit.
        """
        expired: list[Submission] = []
        taken: list[Text] = []
        oldest = self._oldest(now_s, expired)
        if oldest is not None:
            self._fill(taken, oldest.length, max(max_tokens, oldest.length), now_s, expired)
        if not self.texts:
            self._clear()
        taken.sort(key=_length)
        return taken, expired

    def _oldest(self, now_s: float, expired: list[Submission]) -> _Entry | None:
        while self._arrivals:
            entry = self._arrivals[0]
            if entry.submission is not None:
                if self._is_wanted(entry.submission, now_s, expired):
                    return entry
                self._alike[entry.length].popleft()  # where it is the oldest as well
                if not self._alike[entry.length]:
                    self._forget(entry.length)
            self._arrivals.popleft()
        return None

    def _fill(self, taken: list[Text], anchor: int, room: int, now_s: float, expired: list[Submission]) -> None:
        """Takes texts, by the distance of their length from the anchor's, until there is no room for any."""
        lengths, emptied = self._lengths, []
        high = bisect_left(lengths, anchor)
        low = high - 1
        while low >= 0 or high < len(lengths):
            upwards = low < 0 or (high < len(lengths) and lengths[high] - anchor <= anchor - lengths[low])
            length = lengths[high if upwards else low]
            alike = self._alike[length]
            while alike and length <= room:
                entry = alike.popleft()
                submission, entry.submission = entry.submission, None
                if submission is not None and self._is_wanted(submission, now_s, expired):
                    taken.append(Text(length, entry.row, submission))
                    submission.texts -= 1
                    submission.tokens -= length
                    room -= length
            if not alike:
                emptied.append(length)
            if upwards:
                high = high + 1 if length <= room else len(lengths)  # what is longer fits no better
            else:
                low = min(low - 1, bisect_right(lengths, room) - 1)
        for length in emptied:
            self._forget(length)
        self.texts -= len(taken)
        self.tokens -= sum(map(_length, taken))

    def _is_wanted(self, submission: Submission, now_s: float, expired: list[Submission]) -> bool:
        if submission.gone:
            return False
        if submission.deadline_s > now_s:
            return True
        self._give_up(submission)
        expired.append(submission)
        return False

    def _give_up(self, submission: Submission) -> None:
        if not submission.gone:
            submission.gone = True
            self.texts -= submission.texts
            self.tokens -= submission.tokens

    def _forget(self, length: int) -> None:
        del self._alike[length]
        del self._lengths[bisect_left(self._lengths, length)]

    def _clear(self) -> None:
        self._arrivals.clear()
        self._alike.clear()
        self._lengths.clear()
