"""Batch queue: the texts of the next batch, and the counts of texts and tokens."""

import weakref
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from isogloss_server.engine.batch_queue import BatchQueue, QueuedText, Submission
from isogloss_server.models.interfaces import TokenBatch


def submission(*lengths: int, deadline_s: float = 1e9) -> Submission:
    tokens = TokenBatch(np.arange(sum(lengths), dtype=np.int32), np.array(lengths, np.int64))
    future: Any = None  # the queue does not use it
    return Submission(tokens, 1, deadline_s, future)


def lengths_of(texts: list[QueuedText]) -> list[int]:
    return [text.length for text in texts]


def test_a_batch_has_texts_of_similar_length() -> None:
    """A batch has the oldest text and those nearest to its length, shorter and longer, ascending."""
    queue = BatchQueue()
    queue.put(submission(10, 18, 11, 50, 9, 2, 8))
    assert lengths_of(queue.take(40, 0)[0]) == [2, 8, 9, 10, 11]
    assert lengths_of(queue.take(40, 0)[0]) == [18]
    assert lengths_of(queue.take(40, 0)[0]) == [50]
    assert queue.take(40, 0) == ([], [])


def test_texts_of_equal_length_are_taken_in_the_order_of_arrival() -> None:
    """Among texts of one length the oldest are taken first, across submissions."""
    queue = BatchQueue()
    first, second = submission(3, 3), submission(3, 3)
    queue.put(first)
    queue.put(second)
    taken, _ = queue.take(9, 0)
    assert [(text.submission, text.row) for text in taken] == [(first, 0), (first, 1), (second, 0)]


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 60))
def test_every_text_is_taken_once_and_batches_are_full(lengths: list[list[int]], budget: int) -> None:
    """A batch keeps to the budget, no queued text would fit in addition, and submissions are taken in turn."""
    queue = BatchQueue()
    queued = [(s, row) for s in [submission(*part) for part in lengths] for row in range(len(s.lengths))]
    for entry in dict.fromkeys(s for s, _ in queued):
        queue.put(entry)
    skipped: Counter[Submission] = Counter()
    while queued:
        taken, expired = queue.take(budget, 0)
        keys = [(text.submission, text.row) for text in taken]
        used = sum(lengths_of(taken))
        skipped.update({s for s, _ in queued})
        for s, _ in keys:
            del skipped[s]
        assert all(times < len(lengths) for times in skipped.values())
        assert used <= budget or len(taken) == 1
        assert lengths_of(taken) == sorted(s.lengths[row] for s, row in keys)
        assert len(set(keys)) == len(keys)
        assert set(keys) <= set(queued)
        queued = [key for key in queued if key not in keys]
        assert all(s.lengths[row] > budget - used for s, row in queued)
        assert (queue.texts, queue.tokens) == (len(queued), sum(s.lengths[row] for s, row in queued))
        assert expired == []


@given(st.data())
def test_counts_match_the_texts_that_can_be_taken(data: st.DataObject) -> None:
    """The counts are exact after any sequence of submissions, cancellations, expiries and batches."""
    queue = BatchQueue()
    expected: Counter[Submission] = Counter()
    now_s = 0.0
    for step in data.draw(st.lists(st.sampled_from(["put", "drop", "take", "later"]), max_size=40)):
        match step:
            case "put":
                lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
                entry = submission(*lengths, deadline_s=now_s + data.draw(st.integers(1, 4)))
                queue.put(entry)
                expected[entry] = len(lengths)
            case "drop" if expected:
                entry = data.draw(st.sampled_from(sorted(expected, key=lambda s: s.deadline_s)))
                queue.drop(entry)
                del expected[entry]
            case "later":
                now_s += 1
            case "take":
                taken, expired = queue.take(data.draw(st.integers(1, 12)), now_s)
                assert all(entry.deadline_s <= now_s for entry in expired)
                assert not {text.submission for text in taken} & set(expired)
                expected.subtract(text.submission for text in taken)
                expected = Counter(
                    {entry: texts for entry, texts in expected.items() if texts and entry not in expired}
                )
        assert queue.texts == expected.total()
        assert queue.tokens == sum(entry.tokens for entry in expected)
    taken, _ = queue.take(10_000, now_s)
    assert Counter(text.submission for text in taken) == Counter(
        {entry: texts for entry, texts in expected.items() if entry.deadline_s > now_s}
    )
    assert (queue.texts, queue.tokens, len(queue._round_robin), len(queue._by_length), queue._lengths) == (
        0,
        0,
        0,
        0,
        [],
    )


def test_dropped_texts_are_freed_while_the_queue_stays_busy() -> None:
    """Dropped texts are freed although the queue is never empty and no batch has texts of their length."""
    queue = BatchQueue()
    dropped = [submission(400, 500) for _ in range(50)]
    for entry in dropped:
        queue.put(entry)
        queue.put(submission(3, 3))
        queue.drop(entry)
    for _ in range(14):
        queue.put(submission(*[3] * 8))
        queue.take(24, 0)
    assert queue.texts == 100
    assert queue._lengths == [3]
    assert len(queue._round_robin) <= 50 + 14


def test_a_large_submission_does_not_delay_a_later_one() -> None:
    """A text that is submitted after a thousand others of one call is in the first or the second batch."""
    queue = BatchQueue()
    large, small = submission(*[5] * 1000), submission(90)
    queue.put(large)
    queue.put(small)
    assert any(small in {text.submission for text in queue.take(100, 0)[0]} for _ in range(2))


def test_a_submission_is_freed_when_all_its_texts_are_taken() -> None:
    """The queue does not refer to a submission whose texts are taken, even if its deadline is far."""
    queue = BatchQueue()
    queue.put(submission(3, deadline_s=1e6))
    queue.put(remaining := submission(1000))
    taken, _ = queue.take(3, 0)
    freed = weakref.ref(taken.pop().submission)
    assert freed() is None
    assert remaining.texts == 1
