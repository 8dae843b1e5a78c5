"""Request coalescing: calls for a text in flight share its computation, with their own deadlines and errors."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Priority, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.errors import DeadlineExceededError
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.cached_embedder import CachedEmbedder, UniqueRowsEmbedder, settle

BULK = Urgency(Priority.BULK)


@pytest.fixture
def cached() -> CachedEmbedder:
    return CachedEmbedder(UniqueRowsEmbedder(gated=True))


async def test_concurrent_calls_for_a_text_share_one_computation(cached: CachedEmbedder) -> None:
    """A text that several concurrent calls have is computed once, and all receive the same row."""
    calls = [cached.start_call("a", "b"), *(cached.start_call("b", "a") for _ in range(10)), cached.start_call("b")]
    await settle()
    cached.embedder.release(len(calls))
    first, *others = await asyncio.gather(*calls)
    assert cached.embedder.calls == [["a", "b"]]
    assert all(np.array_equal(other.rows[0], first.rows[1]) for other in others)
    assert [other.cached_rows for other in others] == [2] * 10 + [1]
    assert cached.in_flight == 0


async def test_a_call_does_not_wait_for_that_of_an_isolated_caller(cached: CachedEmbedder) -> None:
    """Calls of one caller share a computation; one of another caller for the same text makes its own."""
    calls = [cached.start_call("a", urgency=Urgency(caller=caller)) for caller in ("alice", "alice", "bob")]
    await settle()
    assert cached.embedder.calls == [["a"], ["a"]]
    cached.embedder.release(2)
    rows = [(await call).rows for call in calls]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


async def test_a_call_computes_its_other_texts_while_it_waits(cached: CachedEmbedder) -> None:
    """A call computes at once those of its texts that are not in flight, and awaits the others."""
    first = cached.start_call("a", "b")
    second = cached.start_call("b", "c")
    third = cached.start_call("c", "a")
    await settle()
    assert cached.embedder.calls == [["a", "b"], ["c"]]
    cached.embedder.release(2)
    rows = [(await call).rows for call in (first, second, third)]
    np.testing.assert_array_equal(rows[0][1], rows[1][0])
    np.testing.assert_array_equal(rows[1][1], rows[2][0])
    np.testing.assert_array_equal(rows[2][1], rows[0][0])


async def test_a_cancelled_waiter_does_not_affect_others(cached: CachedEmbedder) -> None:
    """Neither the computation nor the other waiters end when a waiter is cancelled."""
    first, second, third = cached.start_call("a"), cached.start_call("a"), cached.start_call("a")
    await settle()
    second.cancel()
    await settle()
    assert second.cancelled()
    cached.embedder.release()
    np.testing.assert_array_equal((await first).rows, (await third).rows)
    assert len(cached.embedder.calls) == 1


async def test_one_waiter_computes_when_the_computing_call_is_cancelled(cached: CachedEmbedder) -> None:
    """After each cancellation exactly one of the waiters computes, and the others wait for it."""
    calls = [cached.start_call("a") for _ in range(6)]
    await settle()
    for computations in range(1, 5):
        assert len(cached.embedder.calls) == computations
        calls[computations - 1].cancel()
        await settle()
    cached.embedder.release()
    fifth, sixth = await asyncio.gather(*calls[4:])
    np.testing.assert_array_equal(fifth.rows, sixth.rows)
    assert len(cached.embedder.calls) == 5
    assert cached.in_flight == 0


async def test_the_deadline_of_the_computing_call_does_not_fail_its_waiters() -> None:
    """If the computing call expires, waiters with later deadlines receive their row."""
    late = DeadlineExceededError("no time")

    class Expiring(UniqueRowsEmbedder):
        async def embed(
            self, texts: Sequence[str], input_type: InputType, truncation: Truncation, urgency: Urgency, **options: Any
        ) -> Embedded:
            embedded = await super().embed(texts, input_type, truncation, urgency, **options)
            if urgency.deadline_s < 1e9:
                raise late
            return embedded

    cached = CachedEmbedder(Expiring(gated=True))
    short = cached.start_call("a", urgency=Urgency(deadline_s=1e8))
    others = [cached.start_call("a") for _ in range(3)]
    await settle()
    cached.embedder.release(2)
    with pytest.raises(DeadlineExceededError):
        await short
    assert len({(await other).rows.tobytes() for other in others}) == 1
    assert len(cached.embedder.calls) == 2


async def test_each_waiter_of_a_failing_text_receives_its_own_error() -> None:
    """After two failed computations of others, the remaining waiters compute for themselves at the same time."""
    cached = CachedEmbedder(UniqueRowsEmbedder(gated=True, errors={"bad": OSError("broken")}))
    calls = [cached.start_call("bad") for _ in range(10)]
    await settle()
    assert len(cached.embedder.calls) == 1
    cached.embedder.release()
    await settle()
    assert len(cached.embedder.calls) == 2
    cached.embedder.release()
    await settle()
    assert len(cached.embedder.calls) == 10
    cached.embedder.release(10)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 10
    assert cached.in_flight == 0


async def test_waiters_of_a_failed_computation_share_the_next_one() -> None:
    """If the second computation succeeds, all waiters of the first one receive its row."""

    class FailingOnce(UniqueRowsEmbedder):
        async def embed(self, *arguments: Any, **options: Any) -> Embedded:
            embedded = await super().embed(*arguments, **options)
            if self.ended == 1:
                raise OSError("once")
            return embedded

    cached = CachedEmbedder(FailingOnce(gated=True))
    first, *others = [cached.start_call("a") for _ in range(5)]
    await settle()
    cached.embedder.release(5)
    with pytest.raises(OSError, match="once"):
        await first
    assert len({(await other).rows.tobytes() for other in others}) == 1
    assert len(cached.embedder.calls) == 2


async def test_a_row_error_affects_only_calls_with_that_text(cached: CachedEmbedder) -> None:
    """A waiter for a valid text of a call with a row error receives its row; one for the invalid text, the error."""
    first = cached.start_call("good", "!!!")
    good = cached.start_call("good")
    bad = cached.start_call("new", "good", "!!!")
    await settle()
    cached.embedder.release(20)
    assert (set((await first).row_errors), set((await bad).row_errors)) == ({1}, {2})
    assert (await good).rows.shape == (1, 16)


async def test_interactive_does_not_wait_for_bulk(cached: CachedEmbedder) -> None:
    """INTERACTIVE computes a text that BULK has in flight; later calls of both priorities wait for INTERACTIVE."""
    bulk = cached.start_call("a", urgency=BULK)
    await cached.embedder.wait_for_calls(1)
    interactive = cached.start_call("a")
    await cached.embedder.wait_for_calls(2)
    others = [cached.start_call("a"), cached.start_call("a", urgency=BULK)]
    await settle()
    assert [urgency.priority for urgency in cached.embedder.urgencies] == [Priority.BULK, Priority.INTERACTIVE]
    bulk.cancel()  # it was first, but no call waits for it
    await settle()
    cached.embedder.release(1)
    assert len({(await call).rows.tobytes() for call in (interactive, *others)}) == 1
    assert (len(cached.embedder.calls), cached.in_flight) == (2, 0)


async def test_bulk_waits_for_both_priorities(cached: CachedEmbedder) -> None:
    """A BULK call waits for texts that BULK or INTERACTIVE calls have in flight."""
    first, second = cached.start_call("a", urgency=BULK), cached.start_call("b")
    third = cached.start_call("a", "b", urgency=BULK)
    await settle()
    assert len(cached.embedder.calls) == 2
    cached.embedder.release(2)
    rows = [(await call).rows for call in (first, second)]
    np.testing.assert_array_equal((await third).rows, np.concatenate(rows))


async def test_the_deadline_of_a_waiter_ends_only_its_wait(cached: CachedEmbedder) -> None:
    """An expired waiter gets DeadlineExceededError, and the computation continues for the others."""
    first = cached.start_call("a")
    await settle()
    now_s = SystemClock().monotonic_s()
    with pytest.raises(DeadlineExceededError):
        await cached.start_call("a", urgency=Urgency(deadline_s=now_s))
    cached.embedder.release()
    assert (await first).rows.shape == (1, 16)


async def test_rows_that_are_not_stored_are_still_shared() -> None:
    """Rows that exceed the limit of the cache reach all waiters."""
    cached = CachedEmbedder(UniqueRowsEmbedder(gated=True), max_bytes=1)
    first, second = cached.start_call("a"), cached.start_call("a")
    await settle()
    cached.embedder.release(2)
    np.testing.assert_array_equal((await first).rows, (await second).rows)
    await cached.start_call("a")
    assert len(cached.embedder.calls) == 2


URGENCIES = [Urgency(), BULK]
TEXTS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]


class LengthEmbedder(UniqueRowsEmbedder):
    """Returns a row of its length for each text."""

    async def embed(self, texts: Sequence[str], *arguments: Any, **options: Any) -> Embedded:
        """Returns rows float32 [n, d]."""
        embedded = await super().embed(texts, *arguments, **options)
        embedded.rows[:] = [[len(text)] * embedded.rows.shape[1] for text in texts]
        return embedded


Calls = list[tuple[list[str], "asyncio.Task[Embedded]"]]


async def start_random_calls(cached: CachedEmbedder, pool: Sequence[str], rng: random.Random) -> Calls:
    """Starts calls of random texts, cancels some, releases all computations, and returns the calls."""
    calls: Calls = []
    for _ in range(60):
        texts = rng.choices(pool, k=rng.randint(1, 5))
        calls.append((texts, cached.start_call(*texts, urgency=rng.choice(URGENCIES))))
        for _ in range(rng.randint(0, 4)):
            await asyncio.sleep(0)
        if rng.random() < 0.3:
            rng.choice(calls)[1].cancel()
        if rng.random() < 0.5:
            cached.embedder.release(rng.randint(1, 3))
    cached.embedder.release(1000)
    return calls


@pytest.mark.parametrize("seed", range(40))
async def test_every_call_ends_correctly_in_any_order_of_events(seed: int) -> None:
    """All calls end, with the rows of their texts or an error of their texts, and no text stays in flight."""
    rng = random.Random(seed)
    bad = [*(["bad"] if seed % 3 == 0 else []), *(["!!!"] if seed % 4 == 0 else [])]
    cached = CachedEmbedder(
        LengthEmbedder(gated=True, errors={"bad": OSError("broken")}), max_bytes=rng.choice([1, 2000, 1 << 20])
    )
    calls = await start_random_calls(cached, [*TEXTS, *bad], rng)
    async with asyncio.timeout(60):
        await asyncio.wait([task for _, task in calls])
    for texts, task in calls:
        if task.cancelled():
            continue
        error = task.exception()
        if error is not None:
            assert isinstance(error, OSError)
            assert "bad" in texts
        elif task.result().row_errors:
            assert list(task.result().row_errors) == [row for row, text in enumerate(texts) if text == "!!!"]
        else:
            assert task.result().rows[:, 0].tolist() == [len(text) for text in texts]
    assert cached.in_flight == 0
