"""Batch queue: the texts of the next batch, and the counts of texts and tokens."""

import itertools
import weakref
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from isogloss.wire.enums import Priority
from isogloss_server.engine.batch_queue import (
    CREDIT_BATCHES,
    MANY_CALLERS,
    BatchScheduler,
    CallerQueues,
    QueuedText,
    Submission,
)
from isogloss_server.models.interfaces import TokenBatch, Urgency

from tests.support.in_process import new_throughput

ids = itertools.count()


def put(
    queue: CallerQueues,
    *lengths: int,
    deadline_s: float = 1e9,
    texts: list[list[int]] | None = None,
    call: Any = None,
    caller: str = "",
) -> Submission:
    """Enqueues texts of these lengths, which all differ, or the `texts` given as tokens."""
    texts = texts or [[next(ids) for _ in range(length)] for length in lengths]
    future: Any = None  # the queue does not use it
    submission = Submission(len(texts), 1, Urgency(deadline_s=deadline_s, progress=call, caller=caller), future)
    tokens = [token for text in texts for token in text]
    queue.put(submission, TokenBatch(np.array(tokens, np.int32), np.array([len(text) for text in texts])))
    return submission


def owners_of(texts: list[QueuedText]) -> list[tuple[Submission, int]]:
    return [owner for text in texts for owner in text.owners]


def forget(texts: list[QueuedText]) -> None:
    for text in texts:
        text.queue.forget(text)


def lengths_of(texts: list[QueuedText]) -> list[int]:
    return [text.length for text in texts]


def test_a_batch_has_texts_of_similar_length() -> None:
    """A batch has the oldest text and those nearest to its length, shorter and longer, ascending."""
    queue = CallerQueues(10_000, new_throughput())
    put(queue, 10, 18, 11, 50, 9, 2, 8)
    assert lengths_of(queue.take(40, 0)[0]) == [2, 8, 9, 10, 11]
    assert lengths_of(queue.take(40, 0)[0]) == [18]
    assert lengths_of(queue.take(40, 0)[0]) == [50]
    assert queue.take(40, 0) == ([], [])


def test_calls_share_the_model_equally() -> None:
    """Texts of one length are taken from each call in turn, in the order of each call's texts."""
    queue = CallerQueues(3, new_throughput())
    first, second = put(queue, 3, 3, 3, 3), put(queue, 3, 3)
    taken = [owner for _ in range(6) for owner in owners_of(queue.take(3, 0)[0])]
    assert taken == [(first, 0), (second, 0), (first, 1), (second, 1), (first, 2), (first, 3)]


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 60))
def test_every_text_is_taken_once_and_batches_are_full(lengths: list[list[int]], budget: int) -> None:
    """A batch keeps to the budget, and no queued text of the window would fit in addition."""
    queue = CallerQueues(10_000, new_throughput())
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
    queue = CallerQueues(budget, new_throughput())
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
    queue = CallerQueues(10_000, new_throughput())
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
                entry.queue.drop(entry)
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
    forget(taken)
    for share in queue._shares.values():
        empty = share.queue
        assert not any((empty._submissions, empty._by_length, empty._lengths, empty._by_ids))


def test_dropped_texts_are_freed_while_the_queue_stays_busy() -> None:
    """Dropped texts are freed although the queue is never empty and no batch has texts of their length."""
    queue = CallerQueues(10_000, new_throughput())
    for _ in range(50):
        dropped = put(queue, 400, 500)
        put(queue, 3, 3)
        dropped.queue.drop(dropped)
    for _ in range(14):
        put(queue, *[3] * 8)
        queue.take(24, 0)
    assert queue.texts == 100
    assert queue._shares[""].queue._lengths == [3]
    assert len(queue._shares[""].queue._submissions) <= 50 + 14


def test_a_large_submission_does_not_delay_a_later_one() -> None:
    """A text that is submitted after a thousand others of one call is in the first or the second batch."""
    queue = CallerQueues(10_000, new_throughput())
    put(queue, *[5] * 1000)
    small = put(queue, 90)
    assert any((small, 0) in owners_of(queue.take(100, 0)[0]) for _ in range(2))


def test_a_submission_is_freed_when_all_its_texts_are_taken() -> None:
    """The queue does not refer to a submission whose texts are taken, even if its deadline is far."""
    queue = CallerQueues(10_000, new_throughput())
    put(queue, 3, deadline_s=1e6)
    remaining = put(queue, 1000)
    taken, _ = queue.take(3, 0)
    freed = weakref.ref(taken[0].owners[0][0])
    forget(taken)
    taken.clear()
    assert freed() is None
    assert remaining.texts == 1


def test_equal_texts_are_computed_once() -> None:
    """A text that is queued, or taken and not yet computed, is one entry for all its calls; a computed one is new."""
    queue = CallerQueues(10_000, new_throughput())
    first, second = put(queue, texts=[[1, 2], [3], [1, 2]]), put(queue, texts=[[1, 2]])
    assert (queue.texts, queue.tokens) == (2, 3)
    taken, _ = queue.take(2, 0)
    assert owners_of(taken) == [(first, 0), (first, 2), (second, 0)]
    third = put(queue, texts=[[1, 2]])
    assert taken[0].owners[-1] == (third, 0)
    assert (queue.texts, third.texts) == (1, 0)
    forget(taken)
    put(queue, texts=[[1, 2]])
    assert queue.texts == 2


def test_equal_texts_of_different_callers_are_computed_for_each() -> None:
    """A text that another caller has queued is not faster for that, so that timing does not reveal it."""
    queue = CallerQueues(10_000, new_throughput())
    first, second = put(queue, texts=[[1, 2]], caller="a"), put(queue, texts=[[1, 2]], caller="b")
    taken, _ = queue.take(4, 0)
    assert owners_of(taken) == [(first, 0), (second, 0)]
    assert len(taken) == 2


def test_a_shared_text_is_taken_in_the_turn_of_any_of_its_calls() -> None:
    """A text deep in a large call is in the next batch once a small call asks for it as well."""
    queue = CallerQueues(10_000, new_throughput())
    texts = [[n] * 5 for n in range(1000)]
    put(queue, texts=texts)
    queue.take(10, 0)
    small = put(queue, texts=[texts[900]])
    assert any((small, 0) in owners_of(queue.take(10, 0)[0]) for _ in range(2))


def test_a_dropped_call_leaves_shared_texts_to_the_others() -> None:
    """A text of two calls stays queued until both are dropped."""
    queue = CallerQueues(10_000, new_throughput())
    first, second = put(queue, texts=[[1], [2]]), put(queue, texts=[[1]])
    first.queue.drop(first)
    assert queue.texts == 1
    second.queue.drop(second)
    assert (queue.texts, queue.tokens) == (0, 0)
    assert second.queue.is_unused
    assert not second.queue._lengths


def test_a_call_of_several_submissions_has_the_share_of_one_call() -> None:
    """A long call, whose blocks are submitted one by one, does not get a share for each block."""
    queue = CallerQueues(10, new_throughput())
    call: Any = object()
    blocks = [put(queue, *[10] * 20, call=call) for _ in range(5)]
    other = put(queue, *[10] * 20)
    taken = [owner for _ in range(20) for owner in owners_of(queue.take(10, 0)[0])]
    assert sum(submission is other for submission, _ in taken) == 10
    assert {submission for submission, _ in taken} == {blocks[0], other}
    assert queue.large_calls == 2
    for submission in (*blocks, other):
        submission.queue.drop(submission)
    assert (queue.large_calls, queue._shares[""].queue._calls) == (0, {})


def test_callers_share_the_model_equally() -> None:
    """A caller with ten calls gets as many tokens as one with a single call, and its calls share them."""
    queue = CallerQueues(4, new_throughput())
    greedy = [put(queue, *[4] * 20, caller="greedy") for _ in range(10)]
    alone = put(queue, *[4] * 20, caller="alone")
    taken = [submission for _ in range(40) for submission, _ in owners_of(queue.take(4, 0)[0])]
    assert taken.count(alone) == 20
    assert [taken.count(call) for call in greedy] == [2] * 10


def test_a_quiet_caller_is_served_at_once_after_the_others_used_its_share() -> None:
    """All texts of a call of a few batches come first, however much another caller has queued."""
    queue = CallerQueues(4, new_throughput())
    for _ in range(10):
        put(queue, *[4] * 20, caller="greedy")
    for _ in range(50):
        queue.take(4, 0)
    quiet = put(queue, *[4] * 4, caller="quiet")
    assert [submission for _ in range(4) for submission, _ in owners_of(queue.take(4, 0)[0])] == [quiet] * 4


def test_a_caller_that_was_quiet_alone_is_served_at_once() -> None:
    """A caller that used all of what was computed, but little of the time, has its credit when a greedy one begins."""
    throughput = new_throughput()
    throughput.record(1000, 100.0)
    queue = CallerQueues(4, throughput)
    for second in range(100):
        put(queue, 1, caller="quiet")
        queue.take(4, second)
    for _ in range(10):
        put(queue, *[4] * 20, caller="greedy")
    queue.take(4, 100)
    quiet = put(queue, 4, caller="quiet")
    assert owners_of(queue.take(4, 100)[0]) == [(quiet, 0)]


def test_tokens_that_others_left_to_a_caller_are_not_held_against_it() -> None:
    """A caller that had the model alone for long gets its share when another one begins to ask for as much."""
    queue = CallerQueues(4, new_throughput())
    first = put(queue, *[4] * 1000, caller="first")
    for _ in range(500):
        put(queue, 1, caller="second")  # there is always a text of the second caller, and it uses a fifth of the model
        queue.take(5, 0)
    put(queue, *[4] * 1000, caller="second")
    taken = [submission for _ in range(100) for submission, _ in owners_of(queue.take(4, 0)[0])]
    assert taken.count(first) >= 50 - 2 * CREDIT_BATCHES


def test_a_batch_has_texts_of_several_callers() -> None:
    """What the caller whose turn it is leaves free is filled with the texts of the others."""
    queue = CallerQueues(20, new_throughput())
    for caller in "abc":
        put(queue, 5, caller=caller)
    put(queue, *[5] * 10, caller="d")
    assert lengths_of(queue.take(20, 0)[0]) == [5, 5, 5, 5]


def test_a_long_text_of_a_second_caller_waits_for_its_turn() -> None:
    """A batch exceeds its tokens only by the text that is due first of all."""
    queue = CallerQueues(20, new_throughput())
    put(queue, 5, caller="a")
    put(queue, 50, caller="b")
    assert lengths_of(queue.take(20, 0)[0]) == [5]
    assert lengths_of(queue.take(20, 0)[0]) == [50]


def test_queues_of_callers_that_do_not_come_back_are_removed() -> None:
    """The memory for callers is bounded by those that have texts."""
    queue = CallerQueues(10_000, new_throughput())
    for number in range(3 * MANY_CALLERS):
        put(queue, 1, caller=str(number))
        forget(queue.take(10, 0)[0])
    assert len(queue._shares) <= MANY_CALLERS


def test_batches_are_small_while_a_caller_with_small_calls_waits_beside_another() -> None:
    """Ten calls of less than a batch fill batches; once another caller has such a call, batches take 25 ms."""
    throughput = new_throughput()
    throughput.record(10_000, 1.0)
    scheduler = BatchScheduler(1024, throughput)
    future: Any = None
    batch = TokenBatch(np.arange(5000, dtype=np.int32), np.full(500, 10))
    for _ in range(2):
        scheduler.put(Submission(500, 1, Urgency(caller="greedy"), future), batch, Priority.INTERACTIVE, 0.0)
        assert sum(lengths_of(scheduler.take(0.0, 0)[0])) > 256
    small = TokenBatch(np.arange(300, dtype=np.int32), np.full(30, 10))
    scheduler.put(Submission(30, 1, Urgency(caller="quiet"), future), small, Priority.INTERACTIVE, 0.0)
    assert sum(lengths_of(scheduler.take(0.0, 0)[0])) <= 256
    assert sum(lengths_of(scheduler.take(2.0, 0)[0])) > 256


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
