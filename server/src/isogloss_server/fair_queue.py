"""Fair queues: the callers of a resource take turns, so that many requests of one do not delay those of another."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from heapq import heappop, heappush, nsmallest
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Name of the caller whose request the current task processes; "" if it is unknown. Unknown callers share as one.
CURRENT_CALLER: ContextVar[str] = ContextVar("CURRENT_CALLER", default="")


class CallerQueue(Generic[Item]):
    """Items of several callers, who take turns. The items of a caller are in the order of their numbers `order`."""

    def __init__(self) -> None:
        self._numbers = count()  # make equal orders comparable: first come, first served
        self._callers: OrderedDict[str, list[tuple[int, int, Item]]] = OrderedDict()  # in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._callers)

    def put(self, caller: str, item: Item, order: int = 0) -> None:
        """Adds an item of a caller; the turn of a caller without items comes after those of the others."""
        heappush(self._callers.setdefault(caller, []), (order, next(self._numbers), item))

    def before(self, caller: str, order: int = 0) -> Iterator[Item]:
        """Yields the items that would be removed before a new one."""
        own = [item for earlier, _, item in self._callers.get(caller, []) if earlier <= order]
        yield from own
        for other, items in self._callers.items():
            if other != caller:
                yield from (item for _, _, item in nsmallest(len(own) + 1, items))

    def __iter__(self) -> Iterator[Item]:
        """Yields all items, in no order."""
        return (item for items in self._callers.values() for _, _, item in items)

    def first(self) -> Item:
        """Returns the item whose turn it is."""
        return next(iter(self._callers.values()))[0][2]

    def pop(self) -> Item:
        """Removes and returns the item whose turn it is; then it is the next caller's turn."""
        caller, items = self._callers.popitem(last=False)
        item = heappop(items)[2]
        if items:
            self._callers[caller] = items
        return item


class FairSemaphore:
    """A number of slots, for which callers wait in turns. Used on one event loop."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: CallerQueue[asyncio.Future[None]] = CallerQueue()

    def request(self, caller: str) -> "asyncio.Future[None]":
        """Returns a future that is done when it has a slot; `release` must follow in any case."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._free:
            self._free -= 1
            granted.set_result(None)
        else:
            self._waiting.put(caller, granted)
        return granted

    def release(self, granted: "asyncio.Future[None]") -> None:
        """Frees the slot of a future, or ends its wait; once for each future."""
        if granted.cancelled() or granted.cancel():
            return
        while self._waiting:
            waiter = self._waiting.pop()
            if not waiter.done():  # else its request was cancelled
                waiter.set_result(None)
                return
        self._free += 1

    @asynccontextmanager
    async def hold(self, caller: str) -> AsyncIterator[None]:
        """Waits for a slot and holds it during the block."""
        granted = self.request(caller)
        try:
            await granted
            yield
        finally:
            self.release(granted)
