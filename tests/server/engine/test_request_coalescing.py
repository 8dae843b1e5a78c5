"""What is being computed is waited for, by nobody longer than he wants, and nobody is stranded."""

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

SOON, LATER = Urgency(), Urgency(Priority.BULK)


@pytest.fixture
def cached() -> CachedEmbedder:
    return CachedEmbedder(UniqueRowsEmbedder(gated=True))


async def test_callers_of_one_text_share_one_computation(cached: CachedEmbedder) -> None:
    """However many ask for it meanwhile, a text is computed once, and all get the same numbers."""
    calls = [cached.start_call("a", "b"), *(cached.start_call("b", "a") for _ in range(10)), cached.start_call("b")]
    await settle()
    cached.embedder.release(len(calls))
    first, *others = await asyncio.gather(*calls)
    assert cached.embedder.calls == [["a", "b"]]
    assert all(np.array_equal(other.rows[0], first.rows[1]) for other in others)
    assert [other.cached_rows for other in others] == [2] * 10 + [1]
    assert cached.in_flight == 0


async def test_a_call_computes_the_rest_while_it_waits(cached: CachedEmbedder) -> None:
    """Of texts that another computes, a call asks for the others alone, at once; each waits for the other's part."""
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


async def test_who_waits_may_leave_alone(cached: CachedEmbedder) -> None:
    """A cancelled waiter ends neither the computation nor the wait of others."""
    first, second, third = cached.start_call("a"), cached.start_call("a"), cached.start_call("a")
    await settle()
    second.cancel()
    await settle()
    assert second.cancelled()
    cached.embedder.release()
    np.testing.assert_array_equal((await first).rows, (await third).rows)
    assert len(cached.embedder.calls) == 1


async def test_when_the_one_who_computes_leaves_one_takes_over(cached: CachedEmbedder) -> None:
    """Of those who waited, exactly one computes, as often as it takes; the others wait for that one."""
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


async def test_a_shorter_deadline_is_the_computing_callers_alone() -> None:
    """Where the one who computes runs out of time, those who have more of it get their row."""
    late = DeadlineExceededError("no time")

    class Impatient(UniqueRowsEmbedder):
        async def embed(
            self, texts: Sequence[str], input_type: InputType, truncation: Truncation, urgency: Urgency, **options: Any
        ) -> Embedded:
            embedded = await super().embed(texts, input_type, truncation, urgency, **options)
            if urgency.deadline_s < 1e9:
                raise late
            return embedded

    cached = CachedEmbedder(Impatient(gated=True))
    short = cached.start_call("a", urgency=Urgency(deadline_s=1e8))
    others = [cached.start_call("a") for _ in range(3)]
    await settle()
    cached.embedder.release(2)
    with pytest.raises(DeadlineExceededError):
        await short
    assert len({(await other).rows.tobytes() for other in others}) == 1
    assert len(cached.embedder.calls) == 2


async def test_a_failure_is_each_callers_own() -> None:
    """Who computes gets the error itself; who waited computes anew, and after two failures waits for no other."""
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


async def test_what_fails_once_is_there_for_those_who_waited() -> None:
    """Where the second try works, all who waited for the first one are answered by it."""

    class Once(UniqueRowsEmbedder):
        async def embed(self, *arguments: Any, **options: Any) -> Embedded:
            embedded = await super().embed(*arguments, **options)
            if self.ended == 1:
                raise OSError("once")
            return embedded

    cached = CachedEmbedder(Once(gated=True))
    first, *others = [cached.start_call("a") for _ in range(5)]
    await settle()
    cached.embedder.release(5)
    with pytest.raises(OSError, match="once"):
        await first
    assert len({(await other).rows.tobytes() for other in others}) == 1
    assert len(cached.embedder.calls) == 2


async def test_another_callers_fault_is_not_mine(cached: CachedEmbedder) -> None:
    """Who waits for a good text of a call that has a bad one gets its row; who waits for the bad one, its own fault."""
    faulty = cached.start_call("good", "!!!")
    good = cached.start_call("good")
    bad = cached.start_call("new", "good", "!!!")
    await settle()
    cached.embedder.release(20)
    assert (set((await faulty).row_errors), set((await bad).row_errors)) == ({1}, {2})
    assert (await good).rows.shape == (1, 16)


async def test_interactive_never_waits_for_bulk(cached: CachedEmbedder) -> None:
    """An INTERACTIVE call computes what BULK is computing already, and later ones, of either kind, wait for it."""
    bulk = cached.start_call("a", urgency=LATER)
    await cached.embedder.wait_for_calls(1)
    interactive = cached.start_call("a")
    await cached.embedder.wait_for_calls(2)
    others = [cached.start_call("a"), cached.start_call("a", urgency=LATER)]
    await settle()
    assert [urgency.priority for urgency in cached.embedder.urgencies] == [Priority.BULK, Priority.INTERACTIVE]
    bulk.cancel()  # it ends nothing but itself, though it was first
    await settle()
    cached.embedder.release(1)
    assert len({(await call).rows.tobytes() for call in (interactive, *others)}) == 1
    assert (len(cached.embedder.calls), cached.in_flight) == (2, 0)


async def test_bulk_waits_for_both(cached: CachedEmbedder) -> None:
    """A BULK call waits for what BULK computes, and for what INTERACTIVE does."""
    first, second = cached.start_call("a", urgency=LATER), cached.start_call("b")
    third = cached.start_call("a", "b", urgency=LATER)
    await settle()
    assert len(cached.embedder.calls) == 2
    cached.embedder.release(2)
    rows = [(await call).rows for call in (first, second)]
    np.testing.assert_array_equal((await third).rows, np.concatenate(rows))


async def test_a_waiters_own_deadline_ends_its_wait_alone(cached: CachedEmbedder) -> None:
    """When its time is up a waiter gets DeadlineExceededError, and the computation goes on for the others."""
    first = cached.start_call("a")
    await settle()
    now_s = SystemClock().monotonic_s()
    with pytest.raises(DeadlineExceededError):
        await cached.start_call("a", urgency=Urgency(deadline_s=now_s))
    cached.embedder.release()
    assert (await first).rows.shape == (1, 16)


async def test_what_nothing_keeps_is_still_computed_once_at_a_time() -> None:
    """Rows that memory has no room for reach all who waited for them."""
    cached = CachedEmbedder(UniqueRowsEmbedder(gated=True), max_bytes=1)
    first, second = cached.start_call("a"), cached.start_call("a")
    await settle()
    cached.embedder.release(2)
    np.testing.assert_array_equal((await first).rows, (await second).rows)
    await cached.start_call("a")
    assert len(cached.embedder.calls) == 2


LANES = [Urgency(), Urgency(Priority.BULK)]
TEXTS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]


class Steady(UniqueRowsEmbedder):
    """Gives each text a row of its length."""

    async def embed(self, texts: Sequence[str], *arguments: Any, **options: Any) -> Embedded:
        """Returns rows float32 [n, d]."""
        embedded = await super().embed(texts, *arguments, **options)
        embedded.rows[:] = [[len(text)] * embedded.rows.shape[1] for text in texts]
        return embedded


Calls = list[tuple[list[str], "asyncio.Task[Embedded]"]]


async def made(cached: CachedEmbedder, pool: Sequence[str], rng: random.Random) -> Calls:
    """Returns calls, of which some were cancelled, once all that may go on does."""
    calls: Calls = []
    for _ in range(60):
        texts = rng.choices(pool, k=rng.randint(1, 5))
        calls.append((texts, cached.start_call(*texts, urgency=rng.choice(LANES))))
        for _ in range(rng.randint(0, 4)):
            await asyncio.sleep(0)
        if rng.random() < 0.3:
            rng.choice(calls)[1].cancel()
        if rng.random() < 0.5:
            cached.embedder.release(rng.randint(1, 3))
    cached.embedder.release(1000)
    return calls


@pytest.mark.parametrize("seed", range(40))
async def test_no_order_of_events_strands_or_confuses_anybody(seed: int) -> None:
    """All calls end, each with its texts' rows or with a fault of its own texts, and nothing is left in flight."""
    rng = random.Random(seed)
    bad = [*(["bad"] if seed % 3 == 0 else []), *(["!!!"] if seed % 4 == 0 else [])]
    cached = CachedEmbedder(
        Steady(gated=True, errors={"bad": OSError("broken")}), max_bytes=rng.choice([1, 2000, 1 << 20])
    )
    calls = await made(cached, [*TEXTS, *bad], rng)
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
