"""Batcher: order, priorities, deadlines, cancellation, failed batches, and the end."""

import asyncio
import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import Priority
from isogloss_server.engine.batch_queue import BULK_SHARE
from isogloss_server.engine.batcher import Batcher, BatchError
from isogloss_server.engine.monitoring import CHECKS
from isogloss_server.errors import DeadlineExceededError, DrainingError, ModelStalledError
from isogloss_server.models.interfaces import Rows, TokenBatch, Urgency
from isogloss_server.system import COMPUTING_NICE

from tests.support.gated_model import WATCHDOG_S, GatedModel, batch_of, occupy, row_of
from tests.support.in_process import new_throughput
from tests.support.manual_clock import ManualClock
from tests.support.scrape import Scrape

INTERACTIVE, BULK = Urgency(), Urgency(Priority.BULK)


async def test_rows_are_in_the_order_of_the_texts(make_batcher: Callable[..., Batcher]) -> None:
    """The rows are in the order of the texts, regardless of the order and the number of the batches."""
    model = GatedModel()
    texts = [[row, length] + [7] * length for row, length in enumerate((5, 1, 9, 1, 30, 2))]
    computed = await make_batcher(model, tokens=12).submit(batch_of(*texts), INTERACTIVE)
    np.testing.assert_array_equal(computed.rows, [row_of(text) for text in texts])
    assert computed.rows.dtype == np.float32
    assert sorted(text for batch in model.batches for text in batch) == sorted(texts)
    assert len(model.batches) == len(computed.spans) > 2


async def test_batches_are_measured_with_and_without_padding(make_batcher: Callable[..., Batcher]) -> None:
    """Each batch counts its texts, its tokens and the positions that the model computes for them, and its time."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model, threads=1, name="padded", positions=lambda lengths: len(lengths) * int(lengths.max()))
    calls = [await occupy(batcher, model), batcher.submit(batch_of([1], [2, 2], [3, 3, 3, 3]), INTERACTIVE)]
    model.release(2)
    await asyncio.gather(*calls)
    scrape, labels = Scrape.of_this_process(), '{model="padded"}'
    assert scrape.value(f"isogloss_batch_texts_sum{labels}") == 1 + 3
    assert scrape.value(f"isogloss_batch_tokens_sum{labels}") == 1 + 7
    assert scrape.value(f"isogloss_batch_positions_total{labels}") == 1 + 3 * 4
    assert scrape.value(f"isogloss_batch_duration_seconds_count{labels}") == 2
    assert scrape.value(f"isogloss_batcher_threads{labels}") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a nice value is that of a thread only on Linux")
async def test_the_model_runs_at_a_lower_priority_than_the_event_loop(make_batcher: Callable[..., Batcher]) -> None:
    """The nice value of a batcher's thread is higher, and stays the same."""
    values = []

    class Observed(GatedModel):
        def forward(self, batch: TokenBatch) -> Rows:
            values.append(os.getpriority(os.PRIO_PROCESS, 0))
            return super().forward(batch)

    batcher, own = make_batcher(Observed(), tokens=12), os.getpriority(os.PRIO_PROCESS, 0)
    for _ in range(2):
        await batcher.submit(batch_of([1, 2]), INTERACTIVE)
    assert values == [min(own + COMPUTING_NICE, 19)] * 2


async def test_a_free_thread_does_not_wait_to_fill_a_batch(make_batcher: Callable[..., Batcher]) -> None:
    """A free thread takes a single text at once; texts that are queued meanwhile are in one batch."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model)
    calls = [await occupy(batcher, model), *(batcher.submit(batch_of([n] * n), INTERACTIVE) for n in (3, 1, 2))]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (3, 6)
    model.release(2)
    await asyncio.gather(*calls)
    assert model.batches == [[[0]], [[1], [2, 2], [3, 3, 3]]]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_interactive_is_first_and_bulk_is_not_starved(make_batcher: Callable[..., Batcher]) -> None:
    """While both priorities wait, one batch in BULK_SHARE is BULK; a batch has one priority."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model, tokens=2)
    calls = [await occupy(batcher, model)]
    calls += [batcher.submit(batch_of([100 + n, 0]), BULK) for n in range(3)]
    calls += [batcher.submit(batch_of([n, 0]), INTERACTIVE) for n in range(20)]
    model.release(24)
    await asyncio.gather(*calls)
    priorities = ["bulk" if batch[0][0] >= 100 else "interactive" for batch in model.batches[1:]]
    cycle = ["interactive"] * (BULK_SHARE - 1) + ["bulk"]
    assert priorities == cycle * 2 + ["interactive"] * 6 + ["bulk"]


async def test_an_interactive_text_waits_for_the_running_batch_only(make_batcher: Callable[..., Batcher]) -> None:
    """Regardless of queued BULK texts, the batch after the running one is INTERACTIVE."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model, tokens=2)
    bulk = batcher.submit(batch_of(*([100 + n, 0] for n in range(9))), BULK)
    for _ in range(3):
        await model.next_batch()
        urgent = batcher.submit(batch_of([1, 1]), INTERACTIVE)
        model.release()
        assert await model.next_batch() == [[1, 1]]
        model.release()
        await urgent
    model.release(6)
    assert len((await bulk).rows) == 9


async def test_cancelled_texts_are_not_computed(make_batcher: Callable[..., Batcher]) -> None:
    """The texts of a cancelled call leave the queue at once, and the model does not receive them."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model)
    first = await occupy(batcher, model)
    cancelled = [
        batcher.submit(batch_of([5, n], [6, n]), urgency) for n in range(50) for urgency in (INTERACTIVE, BULK)
    ]
    for future in cancelled:
        future.cancel()
    await asyncio.sleep(0)  # the queue is notified in the next iteration of the event loop
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)
    model.release(2)
    await first
    await batcher.submit(batch_of([1]), INTERACTIVE)
    assert model.batches == [[[0]], [[1]]]


async def test_a_call_that_is_cancelled_during_a_batch_computes_no_more(make_batcher: Callable[..., Batcher]) -> None:
    """If a call is cancelled while one of its batches runs, its other texts are not computed."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model, tokens=2)
    call = batcher.submit(batch_of([1, 1], [2, 2], [3, 3]), INTERACTIVE)
    await model.next_batch()
    call.cancel()
    await asyncio.sleep(0)
    other = batcher.submit(batch_of([4, 4]), INTERACTIVE)
    model.release(2)
    await other
    assert model.batches == [[[1, 1]], [[4, 4]]]


async def test_expired_texts_are_not_computed(make_batcher: Callable[..., Batcher]) -> None:
    """A call that expires in the queue fails with DeadlineExceededError, and its texts are not computed."""
    model, clock = GatedModel(gated=True), ManualClock()
    batcher = make_batcher(model, clock, tokens=4)
    first = await occupy(batcher, model)
    late = [
        batcher.submit(batch_of([n, n], [n, n, n]), Urgency(priority, clock.now_s + 5))
        for n, priority in enumerate(Priority)
    ]
    in_time = batcher.submit(batch_of([8, 8]), Urgency(deadline_s=clock.now_s + 5.1))
    clock.now_s += 5
    model.release(2)
    for future in late:
        with pytest.raises(DeadlineExceededError):
            await future
    await asyncio.gather(first, in_time)
    assert model.batches == [[[0]], [[8, 8]]]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_queued_texts_are_shared_among_idle_threads(make_batcher: Callable[..., Batcher]) -> None:
    """Two idle threads run inference concurrently, each on half of the queued texts."""
    barrier = threading.Barrier(2, timeout=60)
    model = GatedModel(change=lambda rows: (barrier.wait(), rows)[1])
    computed = await make_batcher(model, threads=2, tokens=2000).submit(
        batch_of(*([n] * 100 for n in range(1, 11))), INTERACTIVE
    )
    np.testing.assert_array_equal(computed.rows[:, 1], np.arange(1, 11))
    assert [len(batch) for batch in model.batches] == [5, 5]


async def test_every_call_under_random_load_receives_its_own_rows(make_batcher: Callable[..., Batcher]) -> None:
    """With concurrent calls that are cancelled, late or failing, every other call receives each of its rows once."""
    rng = np.random.default_rng(5)
    poison = 999_999
    model = GatedModel(change=lambda rows: rows if (rows[:, 1] != poison).all() else rows[:0])
    clock = ManualClock()
    batcher = make_batcher(model, clock, threads=3, tokens=120)
    unique = iter(range(1, poison))
    outcomes: dict[str, int] = {}

    async def caller(number: int) -> None:
        for round_ in range(12):
            texts = [[next(unique)] * int(rng.integers(1, 40)) for _ in range(int(rng.integers(1, 9)))]
            kind = ("fine", "cancelled", "late", "poisoned", "fine", "fine")[(number + round_) % 6]
            if kind == "poisoned":
                texts[-1][0] = poison
            urgency = Urgency(list(Priority)[round_ % 2], clock.now_s - 1 if kind == "late" else clock.now_s + 1e6)
            future = batcher.submit(batch_of(*texts), urgency)
            if kind == "cancelled":
                await asyncio.sleep(0)
                future.cancel()
            try:
                computed = await future
            except (asyncio.CancelledError, DeadlineExceededError, BatchError) as error:
                outcome = type(error).__name__
            else:
                outcome = "rows"
                np.testing.assert_array_equal(computed.rows, [row_of(text) for text in texts])
            outcomes[f"{kind} {outcome}"] = outcomes.get(f"{kind} {outcome}", 0) + 1

    await asyncio.gather(*(caller(number) for number in range(120)))
    assert outcomes["late DeadlineExceededError"] == outcomes["poisoned BatchError"] == 240
    assert outcomes["fine rows"] > 0
    assert {outcome for outcome in outcomes if outcome.startswith("fine")} <= {"fine rows", "fine BatchError"}
    assert sum(outcomes.values()) == 120 * 12
    computed_ids = [text[-1] for batch in model.batches for text in batch if text[-1] != poison]
    assert len(computed_ids) == len(set(computed_ids))
    assert all(sum(map(len, batch)) <= 120 or len(batch) == 1 for batch in model.batches)
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_bulk_batches_are_small_beside_interactive_calls(make_batcher: Callable[..., Batcher]) -> None:
    """After an INTERACTIVE call, BULK batches take about 10 ms at the measured speed of the model."""
    clock = ManualClock()

    def advance(rows: Rows) -> Rows:
        clock.now_s += 0.1  # 10 ms are a tenth of the time of the first batch
        return rows

    model = GatedModel(gated=True, change=advance)
    batcher = make_batcher(model, clock, tokens=4096)
    model.release(100)
    await batcher.submit(batch_of(*[[n] * 16 for n in range(256)]), BULK)
    clock.now_s += 10
    assert [len(batch) for batch in model.batches] == [256]
    await batcher.submit(batch_of([1]), INTERACTIVE)
    del model.batches[:]
    await batcher.submit(batch_of(*[[n] * 16 for n in range(64)]), BULK)
    assert 8 <= len(model.batches[0]) < 64
    clock.now_s += 10
    del model.batches[:]
    await batcher.submit(batch_of(*[[n] * 16 for n in range(256)]), BULK)
    assert [len(batch) for batch in model.batches] == [256]


def _raises(error: type[BaseException]) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        raise error

    return change


@pytest.mark.parametrize(
    "change",
    [
        _raises(RuntimeError),
        _raises(KeyboardInterrupt),
        lambda rows: rows[1:],
        lambda rows: rows[:, 1:],
        lambda rows: rows.astype(np.float64),
        lambda rows: rows * np.float32("nan"),
        lambda rows: rows * np.float32("inf"),
        lambda rows: None,
    ],
    ids=["Exception", "BaseException", "rows", "columns", "dtype", "NaN", "infinite", "None"],
)
async def test_a_failed_batch_fails_only_its_own_calls(
    make_batcher: Callable[..., Batcher], change: Callable[[Rows], Rows]
) -> None:
    """Calls with a text in a failed batch fail, and their other texts leave the queue; other calls succeed."""
    model = GatedModel(gated=True, change=lambda rows: change(rows) if (rows[:, 1] == 13).any() else rows)
    batcher = make_batcher(model, tokens=4)
    calls = [await occupy(batcher, model)]
    calls += [
        batcher.submit(batch_of(*texts), INTERACTIVE)
        for texts in ([[13, 1], [1, 1, 1]], [[2, 2]], [[3, 3, 3]], [[4] * 4])
    ]
    model.release(4)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result).__name__ for result in results] == [
        "InferenceResult",
        "BatchError",
        "BatchError",
        "InferenceResult",
        "InferenceResult",
    ]
    failures = [result for result in results if isinstance(result, BatchError)]
    assert failures[0] is not failures[1]
    assert failures[0].__cause__ is failures[1].__cause__ is not None
    assert [1, 1, 1] not in [text for batch in model.batches for text in batch]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_closing_fails_queued_calls_and_completes_the_running_batch(make_batcher: Callable[..., Batcher]) -> None:
    """The running batch is delivered, queued calls fail with DrainingError, and so do later ones."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model)
    running = await occupy(batcher, model)
    waiting = [batcher.submit(batch_of([1], [2]), urgency) for urgency in (INTERACTIVE, BULK)]
    batcher.close()
    for future in waiting:
        with pytest.raises(DrainingError):
            await future
    with pytest.raises(DrainingError):
        batcher.submit(batch_of([1]), INTERACTIVE)
    model.release()
    assert (await running).rows.tolist() == [[1, 0, 0]]
    assert len(model.batches) == 1


def test_calls_of_a_closed_event_loop_are_discarded(make_batcher: Callable[..., Batcher]) -> None:
    """A thread discards the calls of a closed event loop and serves those of the next loop."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model)

    async def leave() -> None:
        await occupy(batcher, model)

    async def submit() -> Any:
        return await batcher.submit(batch_of([2, 2]), INTERACTIVE)

    asyncio.run(leave())
    model.release(2)
    assert asyncio.run(submit()).rows.tolist() == [[2, 2, 4]]


async def test_the_time_limit_of_a_batch_grows_with_its_tokens(make_batcher: Callable[..., Batcher]) -> None:
    """A long text that is as slow as the measured speed predicts is not stalled; a short one is, after the limit."""
    clock = ManualClock()
    throughput = new_throughput()
    throughput.record(200, 20.0)  # 10 tokens a second: 100 tokens may take 8 x 10 s beyond the limit
    model = GatedModel(gated=True)
    batcher = make_batcher(model, clock, throughput=throughput)
    for tokens, seconds, stalls in ((100, WATCHDOG_S + 75, False), (1, WATCHDOG_S + 25, True)):
        call = batcher.submit(batch_of([tokens] * tokens), INTERACTIVE)
        await model.next_batch()
        checks = len(clock.requested_sleeps_s)
        for check in range(round(seconds / (WATCHDOG_S / CHECKS))):
            clock.advance(WATCHDOG_S / CHECKS)
            await clock.wait_for_sleeps(checks + check + 1)
        await asyncio.sleep(0)
        assert call.done() is stalls
        model.release()
        if stalls:
            with pytest.raises(ModelStalledError) as raised:
                await call
            assert raised.value.retry_after_s == math.inf  # a retry would stall the next thread
        else:
            await call


async def test_equal_texts_of_several_calls_are_computed_once(make_batcher: Callable[..., Batcher]) -> None:
    """A text that is queued or being computed for another call is not computed again, whatever happens to that call."""
    model = GatedModel(gated=True)
    batcher = make_batcher(model, tokens=2)
    first = batcher.submit(batch_of([1, 1], [2, 2]), INTERACTIVE)
    await model.next_batch()
    joined = [batcher.submit(batch_of([1, 1]), INTERACTIVE), batcher.submit(batch_of([2, 2]), INTERACTIVE)]
    first.cancel()
    await asyncio.sleep(0)
    model.release(2)
    assert [result.rows.tolist() for result in await asyncio.gather(*joined)] == [[[2, 1, 2]], [[2, 2, 4]]]
    assert model.batches == [[[1, 1]], [[2, 2]]]


async def test_a_text_that_no_call_waits_for_any_more_is_computed_for_the_next_one(
    make_batcher: Callable[..., Batcher],
) -> None:
    """A call for a text whose only call was cancelled before its batch began receives its row."""
    model = GatedModel(gated=True, change=out_of_memory_above(1))
    batcher = make_batcher(model)
    cancelled, kept = batcher.submit(batch_of([1]), INTERACTIVE), batcher.submit(batch_of([2]), INTERACTIVE)
    await model.next_batch()
    cancelled.cancel()
    await asyncio.sleep(0)
    model.release(10)
    assert (await kept).rows.tolist() == [[1, 2, 2]]
    assert (await batcher.submit(batch_of([1]), INTERACTIVE)).rows.tolist() == [[1, 1, 1]]


def out_of_memory_above(texts: int) -> Callable[[Rows], Rows]:
    """Returns a change that raises MemoryError for batches of more texts."""

    def change(rows: Rows) -> Rows:
        if len(rows) > texts:
            raise MemoryError
        return rows

    return change
