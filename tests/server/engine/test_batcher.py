"""The queue between callers and a model: order, lanes, deadlines, cancellation, failure, the end."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest
from isogloss.wire.enums import Priority
from isogloss_server.engine.batcher import BULK_SHARE, Batcher, BatchError
from isogloss_server.errors import DeadlineExceededError
from isogloss_server.models.interfaces import Rows, Urgency

from tests.support.gated_model import GatedModel, OwnClock, batch_of, busy, row_of

NOW, BULK = Urgency(), Urgency(Priority.BULK)


async def test_rows_come_in_the_order_of_the_texts(make: Callable[..., Batcher]) -> None:
    """However a call's texts are sorted and parted into batches, its rows stand as its texts did."""
    model = GatedModel()
    texts = [[length, length + 1] + [7] * length for length in (5, 1, 9, 1, 30, 2)]
    computed = await make(model, tokens=12).submit(batch_of(*texts), NOW)
    np.testing.assert_array_equal(computed.rows, [row_of(text) for text in texts])
    assert computed.rows.dtype == np.float32
    assert sorted(text for batch in model.batches for text in batch) == sorted(texts)
    assert len(model.batches) == len(computed.spans) > 2


async def test_a_text_waits_for_no_company(make: Callable[..., Batcher]) -> None:
    """A free thread takes a text at once, and what came while it worked goes together as soon as it is free."""
    model = GatedModel(gated=True)
    batcher = make(model)
    calls = [await busy(batcher, model), *(batcher.submit(batch_of([n] * n), NOW) for n in (3, 1, 2))]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (3, 6)
    model.go(2)
    await asyncio.gather(*calls)
    assert model.batches == [[[0]], [[1], [2, 2], [3, 3, 3]]]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_interactive_goes_first_and_bulk_is_not_starved(make: Callable[..., Batcher]) -> None:
    """While both lanes wait BULK has one batch in so many, without company of the other lane."""
    model = GatedModel(gated=True)
    batcher = make(model, tokens=2)
    calls = [await busy(batcher, model)]
    calls += [batcher.submit(batch_of([100 + n, 0]), BULK) for n in range(3)]
    calls += [batcher.submit(batch_of([n, 0]), NOW) for n in range(20)]
    model.go(24)
    await asyncio.gather(*calls)
    lanes = ["bulk" if batch[0][0] >= 100 else "now" for batch in model.batches[1:]]
    of_one_turn = ["now"] * (BULK_SHARE - 1) + ["bulk"]
    assert lanes == of_one_turn * 2 + ["now"] * 6 + ["bulk"]


async def test_an_interactive_text_waits_for_the_running_batch_alone(make: Callable[..., Batcher]) -> None:
    """However much BULK waits, the next batch after the running one is INTERACTIVE's."""
    model = GatedModel(gated=True)
    batcher = make(model, tokens=2)
    bulk = batcher.submit(batch_of(*([100 + n, 0] for n in range(9))), BULK)
    for _ in range(3):
        await model.next_batch()
        urgent = batcher.submit(batch_of([1, 1]), NOW)
        model.go()
        assert await model.next_batch() == [[1, 1]]
        model.go()
        await urgent
    model.go(6)
    assert len((await bulk).rows) == 9


async def test_what_is_cancelled_is_not_computed(make: Callable[..., Batcher]) -> None:
    """A cancelled call leaves the queue at once; where it was all that waited, the model is not called."""
    model = GatedModel(gated=True)
    batcher = make(model)
    first = await busy(batcher, model)
    gone = [batcher.submit(batch_of([5, n], [6, n]), lane) for n in range(50) for lane in (NOW, BULK)]
    for future in gone:
        future.cancel()
    await asyncio.sleep(0)  # cancelling tells the queue in the loop's next turn
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)
    model.go(2)
    await first
    await batcher.submit(batch_of([1]), NOW)
    assert model.batches == [[[0]], [[1]]]


async def test_a_call_cancelled_half_way_computes_no_more(make: Callable[..., Batcher]) -> None:
    """Of a call that is cancelled while a batch of it runs, the other texts are not computed."""
    model = GatedModel(gated=True)
    batcher = make(model, tokens=2)
    call = batcher.submit(batch_of([1, 1], [2, 2], [3, 3]), NOW)
    await model.next_batch()
    call.cancel()
    await asyncio.sleep(0)
    other = batcher.submit(batch_of([4, 4]), NOW)
    model.go(2)
    await other
    assert model.batches == [[[1, 1]], [[4, 4]]]


async def test_what_is_late_is_not_computed(make: Callable[..., Batcher]) -> None:
    """A call that expires in the queue fails with DeadlineExceededError, and nothing more of it is computed."""
    model, clock = GatedModel(gated=True), OwnClock()
    batcher = make(model, clock, tokens=4)
    first = await busy(batcher, model)
    late = [
        batcher.submit(batch_of([n, n], [n, n, n]), Urgency(lane, clock.now_s + 5)) for n, lane in enumerate(Priority)
    ]
    in_time = batcher.submit(batch_of([8, 8]), Urgency(deadline_s=clock.now_s + 5.1))
    clock.now_s += 5
    model.go(2)
    for future in late:
        with pytest.raises(DeadlineExceededError):
            await future
    await asyncio.gather(first, in_time)
    assert model.batches == [[[0]], [[8, 8]]]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_threads_work_at_the_same_time(make: Callable[..., Batcher]) -> None:
    """What waits is shared among the threads that are idle."""
    meeting = threading.Barrier(2, timeout=60)
    model = GatedModel(change=lambda rows: (meeting.wait(), rows)[1])
    computed = await make(model, threads=2, tokens=2000).submit(batch_of(*([n] * 100 for n in range(1, 11))), NOW)
    np.testing.assert_array_equal(computed.rows[:, 1], np.arange(1, 11))
    assert [len(batch) for batch in model.batches] == [5, 5]


async def test_a_storm_of_callers_loses_nothing(make: Callable[..., Batcher]) -> None:
    """Among hundreds of callers that are cancelled, late and failing, every other one gets each of its rows, once."""
    rng = np.random.default_rng(5)
    poison = 999_999
    model = GatedModel(change=lambda rows: rows if (rows[:, 1] != poison).all() else rows[:0])
    clock = OwnClock()
    batcher = make(model, clock, threads=3, tokens=120)
    unique = iter(range(1, poison))
    outcomes: dict[str, int] = {}

    async def caller(number: int) -> None:
        for turn in range(12):
            texts = [[next(unique)] * int(rng.integers(1, 40)) for _ in range(int(rng.integers(1, 9)))]
            kind = ("fine", "cancelled", "late", "poisoned", "fine", "fine")[(number + turn) % 6]
            if kind == "poisoned":
                texts[-1][0] = poison
            urgency = Urgency(list(Priority)[turn % 2], clock.now_s - 1 if kind == "late" else clock.now_s + 1e6)
            future = batcher.submit(batch_of(*texts), urgency)
            if kind == "cancelled":
                await asyncio.sleep(0)
                future.cancel()
            try:
                computed = await future
            except (asyncio.CancelledError, DeadlineExceededError, BatchError) as error:
                outcome = type(error).__name__
            else:
                outcome = "right"
                np.testing.assert_array_equal(computed.rows, [row_of(text) for text in texts])
            outcomes[f"{kind} {outcome}"] = outcomes.get(f"{kind} {outcome}", 0) + 1

    await asyncio.gather(*(caller(number) for number in range(120)))
    assert outcomes["late DeadlineExceededError"] == outcomes["poisoned BatchError"] == 240
    assert outcomes["fine right"] > 0
    assert {outcome for outcome in outcomes if outcome.startswith("fine")} <= {"fine right", "fine BatchError"}
    assert sum(outcomes.values()) == 120 * 12
    seen = [text[-1] for batch in model.batches for text in batch if text[-1] != poison]
    assert len(seen) == len(set(seen))
    assert all(sum(map(len, batch)) <= 120 or len(batch) == 1 for batch in model.batches)
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_bulk_goes_in_small_pieces_while_interactive_calls_come(make: Callable[..., Batcher]) -> None:
    """Beside INTERACTIVE calls a BULK batch takes a hundredth of a second, at the model's own speed."""
    clock = OwnClock()

    def passes(rows: Rows) -> Rows:
        clock.now_s += 0.1  # a hundredth of a second is a tenth of what the first batch has
        return rows

    model = GatedModel(gated=True, change=passes)
    batcher = make(model, clock, tokens=4096)
    model.go(100)
    await batcher.submit(batch_of(*[[n] * 16 for n in range(256)]), BULK)
    clock.now_s += 10
    assert [len(batch) for batch in model.batches] == [256]
    await batcher.submit(batch_of([1]), NOW)
    del model.batches[:]
    await batcher.submit(batch_of(*[[n] * 16 for n in range(64)]), BULK)
    assert 8 <= len(model.batches[0]) < 64
    clock.now_s += 10
    del model.batches[:]
    await batcher.submit(batch_of(*[[n] * 16 for n in range(256)]), BULK)
    assert [len(batch) for batch in model.batches] == [256]
