"""One lane of the queue: which texts make the next batch."""

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
    future: Any = None  # which a lane does not touch
    return Submission(tokens, 1, deadline_s, future)


def lengths_of(texts: list[QueuedText]) -> list[int]:
    return [text.length for text in texts]


def test_company_is_near_in_length() -> None:
    """A batch is the oldest text and those nearest to its length, shorter and longer, ascending."""
    lane = BatchQueue()
    lane.put(submission(10, 18, 11, 50, 9, 2, 8))
    assert lengths_of(lane.take(40, 0)[0]) == [2, 8, 9, 10, 11]
    assert lengths_of(lane.take(40, 0)[0]) == [18]
    assert lengths_of(lane.take(40, 0)[0]) == [50]
    assert lane.take(40, 0) == ([], [])


def test_equal_lengths_leave_in_the_order_of_arrival() -> None:
    """Among texts of one length the oldest go first, whoever they are of."""
    lane = BatchQueue()
    first, second = submission(3, 3), submission(3, 3)
    lane.put(first)
    lane.put(second)
    taken, _ = lane.take(9, 0)
    assert [(text.submission, text.row) for text in taken] == [(first, 0), (first, 1), (second, 0)]


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 60))
def test_every_text_leaves_once_and_no_room_is_left_unused(lengths: list[list[int]], budget: int) -> None:
    """Each text is taken once, a batch keeps to the budget and has no room for any other, and calls take turns."""
    lane = BatchQueue()
    waiting = [(s, row) for s in [submission(*part) for part in lengths] for row in range(len(s.lengths))]
    for one in dict.fromkeys(s for s, _ in waiting):
        lane.put(one)
    passed_over: Counter[Submission] = Counter()
    while waiting:
        taken, expired = lane.take(budget, 0)
        keys = [(text.submission, text.row) for text in taken]
        used = sum(lengths_of(taken))
        passed_over.update({s for s, _ in waiting})
        for s, _ in keys:
            del passed_over[s]
        assert all(times < len(lengths) for times in passed_over.values())
        assert used <= budget or len(taken) == 1
        assert lengths_of(taken) == sorted(s.lengths[row] for s, row in keys)
        assert len(set(keys)) == len(keys)
        assert set(keys) <= set(waiting)
        waiting = [key for key in waiting if key not in keys]
        assert all(s.lengths[row] > budget - used for s, row in waiting)
        assert (lane.texts, lane.tokens) == (len(waiting), sum(s.lengths[row] for s, row in waiting))
        assert expired == []


@given(st.data())
def test_counts_are_exact_whatever_is_given_up(data: st.DataObject) -> None:
    """However calls come, are cancelled, run out of time and are taken, what is counted is what can be taken."""
    lane = BatchQueue()
    wanted: Counter[Submission] = Counter()
    now_s = 0.0
    for step in data.draw(st.lists(st.sampled_from(["put", "drop", "take", "later"]), max_size=40)):
        match step:
            case "put":
                lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
                one = submission(*lengths, deadline_s=now_s + data.draw(st.integers(1, 4)))
                lane.put(one)
                wanted[one] = len(lengths)
            case "drop" if wanted:
                one = data.draw(st.sampled_from(sorted(wanted, key=lambda s: s.deadline_s)))
                lane.drop(one)
                del wanted[one]
            case "later":
                now_s += 1
            case "take":
                taken, expired = lane.take(data.draw(st.integers(1, 12)), now_s)
                assert all(one.deadline_s <= now_s for one in expired)
                assert not {text.submission for text in taken} & set(expired)
                wanted.subtract(text.submission for text in taken)
                wanted = Counter({one: texts for one, texts in wanted.items() if texts and one not in expired})
        assert lane.texts == wanted.total()
        assert lane.tokens == sum(one.tokens for one in wanted)
    taken, _ = lane.take(10_000, now_s)
    assert Counter(text.submission for text in taken) == Counter(
        {one: texts for one, texts in wanted.items() if one.deadline_s > now_s}
    )
    assert (lane.texts, lane.tokens, len(lane._round_robin), len(lane._alike), lane._lengths) == (0, 0, 0, 0, [])


def test_what_is_given_up_is_not_kept_behind_others() -> None:
    """Texts given up leave the memory, though the lane never empties and no batch comes near their length."""
    lane = BatchQueue()
    gone = [submission(400, 500) for _ in range(50)]
    for one in gone:
        lane.put(one)
        lane.put(submission(3, 3))
        lane.drop(one)
    for _ in range(14):
        lane.put(submission(*[3] * 8))
        lane.take(24, 0)
    assert lane.texts == 100
    assert lane._lengths == [3]
    assert len(lane._round_robin) <= 50 + 14


def test_a_call_of_many_texts_does_not_hold_up_a_later_one() -> None:
    """A text that comes after a thousand others of one call is in the second batch at the latest."""
    lane = BatchQueue()
    large, small = submission(*[5] * 1000), submission(90)
    lane.put(large)
    lane.put(small)
    assert any(small in {text.submission for text in lane.take(100, 0)[0]} for _ in range(2))


def test_a_call_that_is_done_is_forgotten() -> None:
    """Nothing keeps a call's rows alive once its texts are taken, though its deadline is far."""
    lane = BatchQueue()
    lane.put(submission(3, deadline_s=1e6))
    lane.put(waiting := submission(1000))
    taken, _ = lane.take(3, 0)
    done = weakref.ref(taken.pop().submission)
    assert done() is None
    assert waiting.texts == 1
