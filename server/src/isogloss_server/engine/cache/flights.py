"""What is being computed at the moment, so that whoever wants the same waits for it."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from isogloss_server.engine.cache.entries import Entry
from isogloss_server.errors import TimeUpError
from isogloss_server.models.base import Priority


class Flight:
    """One call's computation of some texts, from its begin to its end."""

    __slots__ = ("_ended", "entries", "failed", "priority")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.entries: dict[bytes, Entry] = {}  # complete once it has ended well
        self.failed = False  # of itself, not because its caller left or ran out of time
        self._ended = asyncio.Event()

    async def wait(self) -> None:
        """Returns once it has ended, well or not."""
        await self._ended.wait()

    def end(self) -> None:
        """Wakes those who wait."""
        self._ended.set()


class Flights:
    """All that is being computed, by key."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, keys: Iterable[bytes], priority: Priority) -> dict[bytes, Flight]:
        """Returns those that a caller may wait for: an INTERACTIVE one never waits for what BULK computes."""
        found = {key: flight for key in keys if (flight := self._by_key.get(key)) is not None}
        if priority is Priority.BULK:
            return found
        return {key: flight for key, flight in found.items() if flight.priority is not Priority.BULK}

    @contextmanager
    def begin(self, keys: Sequence[bytes], priority: Priority) -> Iterator[dict[bytes, Entry]]:
        """Gives the table that the block is to fill; until it ends, others find a flight for each key.

        The flight goes before others of the same keys, which an INTERACTIVE call does not wait for. However the block
        ends, those who wait are woken, and take what is in the table.
        """
        flight = Flight(priority)
        self._by_key.update(dict.fromkeys(keys, flight))
        try:
            yield flight.entries
        except (asyncio.CancelledError, TimeUpError):
            raise
        except BaseException:
            flight.failed = True
            raise
        finally:
            for key in keys:
                if self._by_key.get(key) is flight:
                    del self._by_key[key]
            flight.end()
