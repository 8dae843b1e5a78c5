"""A shared cache's store in a dict, which fails, refuses or hangs as the test says."""

import asyncio
from collections.abc import Mapping, Sequence

from isogloss_server.engine.shared_cache import StoreError


class DictStore:
    """Values of as many servers as are given it."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.asked: list[int] = []  # keys of each look-up
        self.pings = 0
        self.why = ""  # the error of everything
        self.refusal = ""  # of every write
        self.hangs = False

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Returns values."""
        self.asked.append(len(keys))
        await self._obstacle()
        return [self.values.get(key) for key in keys]

    async def set(self, values: Mapping[bytes, bytes]) -> Sequence[str]:
        """Keeps values."""
        await self._obstacle()
        if self.refusal:
            return [self.refusal] * len(values)
        self.values |= values
        return []

    async def ping(self) -> None:
        """Answers."""
        self.pings += 1
        await self._obstacle()

    async def close(self) -> None:
        """Has nothing to close."""

    async def _obstacle(self) -> None:
        if self.why:
            raise StoreError(self.why)
        if self.hangs:
            await asyncio.Event().wait()
