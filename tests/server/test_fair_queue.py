"""Fair queues: the turns of callers, the order within a caller, and slots that are never lost."""

import asyncio
from collections import Counter

from isogloss_server.fair_queue import CallerQueue, FairSemaphore


def test_callers_take_turns() -> None:
    """Each caller with items has one turn after the other; its own items are in order, first come, first served."""
    queue: CallerQueue[str] = CallerQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    queue.put("a", "a0", order=-1)
    taken = []
    while queue:
        assert queue.first() in set(queue)
        taken.append(queue.pop())
    assert taken == ["a0", "b1", "c1", "a1", "b2", "a2", "a3"]


def test_an_item_waits_for_as_many_items_of_each_other_caller_as_of_its_own() -> None:
    """The items before a new one are those of its caller and, of each other caller, at most one more than those."""
    queue: CallerQueue[str] = CallerQueue()
    for item in ("a1", "a2", "a3", "b1", "c1"):
        queue.put(item[0], item)
    assert sorted(queue.before("b")) == ["a1", "a2", "b1", "c1"]
    assert sorted(queue.before("d")) == ["a1", "b1", "c1"]
    assert sorted(queue.before("a", order=-1)) == ["b1", "c1"]


async def test_callers_take_turns_in_waiting_for_a_slot() -> None:
    """A caller with one request is served after one request of another caller, which has many."""
    semaphore = FairSemaphore(1)
    order: list[str] = []

    async def use(caller: str) -> None:
        async with semaphore.hold(caller):
            order.append(caller)
            await asyncio.sleep(0)

    await asyncio.gather(*(use(caller) for caller in [*["greedy"] * 5, "quiet"]))
    assert order == ["greedy", "greedy", "quiet", *["greedy"] * 3]


async def test_no_slot_is_lost_or_doubled_by_cancelled_requests() -> None:
    """Requests that are cancelled while they wait, when they are granted or later leave all slots free."""
    semaphore = FairSemaphore(2)
    holders: Counter[str] = Counter()

    async def use(steps: int) -> None:
        async with semaphore.hold(str(steps % 3)):
            holders["now"] += 1
            holders["most"] = max(holders["most"], holders["now"])
            try:
                for _ in range(steps % 4):
                    await asyncio.sleep(0)
            finally:
                holders["now"] -= 1

    calls = [asyncio.ensure_future(use(steps)) for steps in range(60)]
    for step, call in enumerate(calls[::2]):
        if step % 3:
            await asyncio.sleep(0)
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert holders["most"] == 2
    free = [semaphore.request("") for _ in range(3)]
    assert [request.done() for request in free] == [True, True, False]


async def test_a_request_is_released_before_it_is_granted() -> None:
    """A waiting request that is released does not get the next slot."""
    semaphore = FairSemaphore(1)
    first, second, third = (semaphore.request("") for _ in range(3))
    semaphore.release(second)
    semaphore.release(first)
    await third
    assert second.cancelled()
