"""What is being computed is waited for, by nobody longer than he wants, and nobody is stranded."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Priority, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.errors import DeadlineExceededError
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.cache_line import Line
from tests.support.changing_embedder import ChangingEmbedder, settle

SOON, LATER = Urgency(), Urgency(Priority.BULK)


@pytest.fixture
def line() -> Line:
    return Line(ChangingEmbedder(gated=True))


async def test_callers_of_one_text_share_one_computation(line: Line) -> None:
    """However many ask for it meanwhile, a text is computed once, and all get the same numbers."""
    calls = [line.ask("a", "b"), *(line.ask("b", "a") for _ in range(10)), line.ask("b")]
    await settle()
    line.embedder.go(len(calls))
    first, *others = await asyncio.gather(*calls)
    assert line.embedder.calls == [["a", "b"]]
    assert all(np.array_equal(other.rows[0], first.rows[1]) for other in others)
    assert [other.cached_rows for other in others] == [2] * 10 + [1]
    assert line.flying == 0


async def test_a_call_computes_the_rest_while_it_waits(line: Line) -> None:
    """Of texts that another computes, a call asks for the others alone, at once; each waits for the other's part."""
    first = line.ask("a", "b")
    second = line.ask("b", "c")
    third = line.ask("c", "a")
    await settle()
    assert line.embedder.calls == [["a", "b"], ["c"]]
    line.embedder.go(2)
    rows = [(await call).rows for call in (first, second, third)]
    np.testing.assert_array_equal(rows[0][1], rows[1][0])
    np.testing.assert_array_equal(rows[1][1], rows[2][0])
    np.testing.assert_array_equal(rows[2][1], rows[0][0])


async def test_who_waits_may_leave_alone(line: Line) -> None:
    """A cancelled waiter ends neither the computation nor the wait of others."""
    first, second, third = line.ask("a"), line.ask("a"), line.ask("a")
    await settle()
    second.cancel()
    await settle()
    assert second.cancelled()
    line.embedder.go()
    np.testing.assert_array_equal((await first).rows, (await third).rows)
    assert len(line.embedder.calls) == 1


async def test_when_the_one_who_computes_leaves_one_takes_over(line: Line) -> None:
    """Of those who waited, exactly one computes, as often as it takes; the others wait for that one."""
    calls = [line.ask("a") for _ in range(6)]
    await settle()
    for computations in range(1, 5):
        assert len(line.embedder.calls) == computations
        calls[computations - 1].cancel()
        await settle()
    line.embedder.go()
    fifth, sixth = await asyncio.gather(*calls[4:])
    np.testing.assert_array_equal(fifth.rows, sixth.rows)
    assert len(line.embedder.calls) == 5
    assert line.flying == 0


async def test_a_shorter_deadline_is_the_computing_callers_alone() -> None:
    """Where the one who computes runs out of time, those who have more of it get their row."""
    late = DeadlineExceededError("no time")

    class Impatient(ChangingEmbedder):
        async def embed(
            self, texts: Sequence[str], input_type: InputType, truncation: Truncation, urgency: Urgency, **options: Any
        ) -> Embedded:
            embedded = await super().embed(texts, input_type, truncation, urgency, **options)
            if urgency.deadline_s < 1e9:
                raise late
            return embedded

    line = Line(Impatient(gated=True))
    short = line.ask("a", urgency=Urgency(deadline_s=1e8))
    others = [line.ask("a") for _ in range(3)]
    await settle()
    line.embedder.go(2)
    with pytest.raises(DeadlineExceededError):
        await short
    assert len({(await other).rows.tobytes() for other in others}) == 1
    assert len(line.embedder.calls) == 2


async def test_a_failure_is_each_callers_own() -> None:
    """Who computes gets the error itself; who waited computes anew, and after two failures waits for no other."""
    line = Line(ChangingEmbedder(gated=True, broken={"bad": OSError("broken")}))
    calls = [line.ask("bad") for _ in range(10)]
    await settle()
    assert len(line.embedder.calls) == 1
    line.embedder.go()
    await settle()
    assert len(line.embedder.calls) == 2
    line.embedder.go()
    await settle()
    assert len(line.embedder.calls) == 10
    line.embedder.go(10)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 10
    assert line.flying == 0


async def test_what_fails_once_is_there_for_those_who_waited() -> None:
    """Where the second try works, all who waited for the first one are answered by it."""

    class Once(ChangingEmbedder):
        async def embed(self, *arguments: Any, **options: Any) -> Embedded:
            embedded = await super().embed(*arguments, **options)
            if self.ended == 1:
                raise OSError("once")
            return embedded

    line = Line(Once(gated=True))
    first, *others = [line.ask("a") for _ in range(5)]
    await settle()
    line.embedder.go(5)
    with pytest.raises(OSError, match="once"):
        await first
    assert len({(await other).rows.tobytes() for other in others}) == 1
    assert len(line.embedder.calls) == 2


async def test_another_callers_fault_is_not_mine(line: Line) -> None:
    """Who waits for a good text of a call that has a bad one gets its row; who waits for the bad one, its own fault."""
    faulty = line.ask("good", "!!!")
    good = line.ask("good")
    bad = line.ask("new", "good", "!!!")
    await settle()
    line.embedder.go(20)
    assert (set((await faulty).row_errors), set((await bad).row_errors)) == ({1}, {2})
    assert (await good).rows.shape == (1, 16)


async def test_interactive_never_waits_for_bulk(line: Line) -> None:
    """An INTERACTIVE call computes what BULK is computing already, and later ones, of either kind, wait for it."""
    bulk = line.ask("a", urgency=LATER)
    await line.embedder.began(1)
    interactive = line.ask("a")
    await line.embedder.began(2)
    others = [line.ask("a"), line.ask("a", urgency=LATER)]
    await settle()
    assert [urgency.priority for urgency in line.embedder.urgencies] == [Priority.BULK, Priority.INTERACTIVE]
    bulk.cancel()  # it ends nothing but itself, though it was first
    await settle()
    line.embedder.go(1)
    assert len({(await call).rows.tobytes() for call in (interactive, *others)}) == 1
    assert (len(line.embedder.calls), line.flying) == (2, 0)


async def test_bulk_waits_for_both(line: Line) -> None:
    """A BULK call waits for what BULK computes, and for what INTERACTIVE does."""
    first, second = line.ask("a", urgency=LATER), line.ask("b")
    third = line.ask("a", "b", urgency=LATER)
    await settle()
    assert len(line.embedder.calls) == 2
    line.embedder.go(2)
    rows = [(await call).rows for call in (first, second)]
    np.testing.assert_array_equal((await third).rows, np.concatenate(rows))


async def test_a_waiters_own_deadline_ends_its_wait_alone(line: Line) -> None:
    """When its time is up a waiter gets DeadlineExceededError, and the computation goes on for the others."""
    first = line.ask("a")
    await settle()
    now_s = SystemClock().monotonic_s()
    with pytest.raises(DeadlineExceededError):
        await line.ask("a", urgency=Urgency(deadline_s=now_s))
    line.embedder.go()
    assert (await first).rows.shape == (1, 16)


async def test_what_nothing_keeps_is_still_computed_once_at_a_time() -> None:
    """Rows that memory has no room for reach all who waited for them."""
    line = Line(ChangingEmbedder(gated=True), max_bytes=1)
    first, second = line.ask("a"), line.ask("a")
    await settle()
    line.embedder.go(2)
    np.testing.assert_array_equal((await first).rows, (await second).rows)
    await line.ask("a")
    assert len(line.embedder.calls) == 2
