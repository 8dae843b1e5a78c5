"""Batch queue: the texts of the next batch, and the counts of texts and tokens."""

import itertools
import weakref
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from isogloss.wire.enums import Priority
from isogloss_server.engine.batch_queue import BatchQueue, BatchScheduler, QueuedText, Submission
from isogloss_server.models.interfaces import TokenBatch, Urgency

from tests.support.in_process import new_throughput

ids = itertools.count()


def put(
    queue: BatchQueue,
    *lengths: int,
    deadline_s: float = 1e9,
    texts: list[list[int]] | None = None,
    call: Any = None,
) -> Submission:
    """Enqueues texts of these lengths, which all differ, or the `texts` given as tokens."""
    texts = texts or [[next(ids) for _ in range(length)] for length in lengths]
    future: Any = None  # the queue does not use it
    submission = Submission(len(texts), 1, Urgency(deadline_s=deadline_s, progress=call), future)
    tokens = [token for text in texts for token in text]
    queue.put(submission, TokenBatch(np.array(tokens, np.int32), np.array([len(text) for text in texts])))
    return submission


def owners_of(texts: list[QueuedText]) -> list[tuple[Submission, int]]:
    return [owner for text in texts for owner in text.owners]


def lengths_of(texts: list[QueuedText]) -> list[int]:
    return [text.length for text in texts]


def test_a_batch_has_texts_of_similar_length() -> None:
    """A batch has the oldest text and those nearest to its length, shorter and longer, ascending."""
    queue = BatchQueue(10_000)
    put(queue, 10, 18, 11, 50, 9, 2, 8)
    assert lengths_of(queue.take(40, 0)[0]) == [2, 8, 9, 10, 11]
    assert lengths_of(queue.take(40, 0)[0]) == [18]
    assert lengths_of(queue.take(40, 0)[0]) == [50]
    assert queue.take(40, 0) == ([], [])


def test_calls_share_the_model_equally() -> None:
    """Texts of one length are taken from each call in turn, in the order of each call's texts."""
    queue = BatchQueue(3)
    first, second = put(queue, 3, 3, 3, 3), put(queue, 3, 3)
    taken = [owner for _ in range(6) for owner in owners_of(queue.take(3, 0)[0])]
    assert taken == [(first, 0), (second, 0), (first, 1), (second, 1), (first, 2), (first, 3)]


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 60))
def test_every_text_is_taken_once_and_batches_are_full(lengths: list[list[int]], budget: int) -> None:
    """A batch keeps to the budget, and no queued text of the window would fit in addition."""
    queue = BatchQueue(10_000)
    length_of: dict[tuple[Submission, int], int] = {}
    for part in lengths:
        entry = put(queue, *part)
        length_of |= {(entry, row): length for row, length in enumerate(part)}
    queued = list(length_of)
    while queued:
        taken, expired = queue.take(budget, 0)
        keys = owners_of(taken)
        used = sum(lengths_of(taken))
        assert used <= budget or len(taken) == 1
        assert lengths_of(taken) == sorted(length_of[key] for key in keys)
        assert len(set(keys)) == len(keys)
        assert set(keys) <= set(queued)
        queued = [key for key in queued if key not in keys]
        assert all(length_of[key] > budget - used for key in queued)
        assert (queue.texts, queue.tokens) == (len(queued), sum(length_of[key] for key in queued))
        assert expired == []


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=40), min_size=1, max_size=12), st.integers(30, 60),
    st.lists(st.integers(1, 30), min_size=1, max_size=10),
)  # fmt: skip
def test_a_call_waits_for_an_equal_share_of_each_other_call(
    others: list[list[int]], budget: int, lengths: list[int]
) -> None:
    """Before a call ends, each other call gets at most as many tokens as it, beside the window and the last batch."""
    queue = BatchQueue(budget)
    before = [put(queue, *part) for part in others]
    queue.take(budget, 0)
    call = put(queue, *lengths)
    got: Counter[Submission] = Counter()
    while call.texts:
        taken, _ = queue.take(budget, 0)
        got.update({submission: text.length for text in taken for submission, _ in text.owners})
    share = sum(lengths)
    most = sum(min(sum(part), share) for part in others)
    assert sum(got[other] for other in before) <= most + 3 * budget + 30 * len(others)


@given(st.data())
def test_counts_match_the_texts_that_can_be_taken(data: st.DataObject) -> None:
    """The counts are exact after any sequence of submissions, cancellations, expiries and batches."""
    queue = BatchQueue(10_000)
    expected: Counter[Submission] = Counter()
    now_s, taken = 0.0, []
    for step in data.draw(st.lists(st.sampled_from(["put", "drop", "take", "later"]), max_size=40)):
        match step:
            case "put":
                lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
                entry = put(queue, *lengths, deadline_s=now_s + data.draw(st.integers(1, 4)))
                expected[entry] = len(lengths)
            case "drop" if expected:
                entry = data.draw(st.sampled_from(sorted(expected, key=lambda s: s.deadline_s)))
                queue.drop(entry)
                del expected[entry]
            case "later":
                now_s += 1
            case "take":
                batch, expired = queue.take(data.draw(st.integers(1, 12)), now_s)
                taken += batch
                assert all(entry.deadline_s <= now_s for entry in expired)
                assert not {submission for submission, _ in owners_of(batch)} & set(expired)
                expected.subtract(submission for submission, _ in owners_of(batch))
                expected = Counter(
                    {entry: texts for entry, texts in expected.items() if texts and entry not in expired}
                )
        assert queue.texts == expected.total()
        assert queue.tokens == sum(
            text.length for entry in expected for text in {*entry.waiting, *entry.in_window} if not text.out
        )
    remaining, _ = queue.take(10_000, now_s)
    taken += remaining
    assert Counter(submission for submission, _ in owners_of(remaining)) == Counter(
        {entry: texts for entry, texts in expected.items() if entry.deadline_s > now_s}
    )
    assert (queue.texts, queue.tokens) == (0, 0)
    queue.forget(taken)
    assert not any((queue._submissions, queue._by_length, queue._lengths, queue._by_ids))


def test_dropped_texts_are_freed_while_the_queue_stays_busy() -> None:
    """Dropped texts are freed although the queue is never empty and no batch has texts of their length."""
    queue = BatchQueue(10_000)
    for _ in range(50):
        dropped = put(queue, 400, 500)
        put(queue, 3, 3)
        queue.drop(dropped)
    for _ in range(14):
        put(queue, *[3] * 8)
        queue.take(24, 0)
    assert queue.texts == 100
    assert queue._lengths == [3]
    assert len(queue._submissions) <= 50 + 14


def test_a_large_submission_does_not_delay_a_later_one() -> None:
    """A text that is submitted after a thousand others of one call is in the first or the second batch."""
    queue = BatchQueue(10_000)
    put(queue, *[5] * 1000)
    small = put(queue, 90)
    assert any((small, 0) in owners_of(queue.take(100, 0)[0]) for _ in range(2))


def test_a_submission_is_freed_when_all_its_texts_are_taken() -> None:
    """The queue does not refer to a submission whose texts are taken, even if its deadline is far."""
    queue = BatchQueue(10_000)
    put(queue, 3, deadline_s=1e6)
    remaining = put(queue, 1000)
    taken, _ = queue.take(3, 0)
    freed = weakref.ref(taken[0].owners[0][0])
    queue.forget(taken)
    taken.clear()
    assert freed() is None
    assert remaining.texts == 1


def test_equal_texts_are_computed_once() -> None:
    """A text that is queued, or taken and not yet computed, is one entry for all its calls; a computed one is new."""
    queue = BatchQueue(10_000)
    first, second = put(queue, texts=[[1, 2], [3], [1, 2]]), put(queue, texts=[[1, 2]])
    assert (queue.texts, queue.tokens) == (2, 3)
    taken, _ = queue.take(2, 0)
    assert owners_of(taken) == [(first, 0), (first, 2), (second, 0)]
    third = put(queue, texts=[[1, 2]])
    assert taken[0].owners[-1] == (third, 0)
    assert (queue.texts, third.texts) == (1, 0)
    queue.forget(taken)
    put(queue, texts=[[1, 2]])
    assert queue.texts == 2


def test_a_shared_text_is_taken_in_the_turn_of_any_of_its_calls() -> None:
    """A text deep in a large call is in the next batch once a small call asks for it as well."""
    queue = BatchQueue(10_000)
    texts = [[n] * 5 for n in range(1000)]
    put(queue, texts=texts)
    queue.take(10, 0)
    small = put(queue, texts=[texts[900]])
    assert any((small, 0) in owners_of(queue.take(10, 0)[0]) for _ in range(2))


def test_a_dropped_call_leaves_shared_texts_to_the_others() -> None:
    """A text of two calls stays queued until both are dropped."""
    queue = BatchQueue(10_000)
    first, second = put(queue, texts=[[1], [2]]), put(queue, texts=[[1]])
    queue.drop(first)
    assert queue.texts == 1
    queue.drop(second)
    assert (queue.texts, queue.tokens, queue._by_ids, queue._lengths) == (0, 0, {}, [])


def test_a_call_of_several_submissions_has_the_share_of_one_call() -> None:
    """A long call, whose blocks are submitted one by one, does not get a share for each block."""
    queue = BatchQueue(10)
    call: Any = object()
    blocks = [put(queue, *[10] * 20, call=call) for _ in range(5)]
    other = put(queue, *[10] * 20)
    taken = [owner for _ in range(20) for owner in owners_of(queue.take(10, 0)[0])]
    assert sum(submission is other for submission, _ in taken) == 10
    assert {submission for submission, _ in taken} == {blocks[0], other}
    assert queue.large_calls == 2
    for submission in (*blocks, other):
        queue.drop(submission)
    assert (queue.large_calls, queue._calls) == (0, {})


def test_batches_are_small_while_short_calls_arrive_beside_a_large_one() -> None:
    """A large call alone has full batches; beside a short call, its batches take 25 ms at the measured speed."""
    throughput = new_throughput()
    throughput.record(10_000, 1.0)
    scheduler = BatchScheduler(1024, throughput)
    future: Any = None
    for row, (tokens, texts) in enumerate(((100, 100), (10, 1))):
        batch = TokenBatch(np.arange(row, row + tokens * texts, dtype=np.int32), np.full(texts, tokens))
        scheduler.put(Submission(texts, 1, Urgency(), future), batch, Priority.INTERACTIVE, 0.0)
        if not row:
            assert sum(lengths_of(scheduler.take(0.0, 0)[0])) == 1000
    assert sum(lengths_of(scheduler.take(0.5, 0)[0])) <= 256
    assert sum(lengths_of(scheduler.take(2.0, 0)[0])) == 1000
