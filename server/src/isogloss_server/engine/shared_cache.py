"""A cache that several servers share: bounded look-ups, writes in the background, a versioned row format."""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol
from zlib import crc32

from isogloss_server import logs, metrics
from isogloss_server.circuit_breaker import Bypass
from isogloss_server.clock import Clock
from isogloss_server.models.interfaces import Report

FORMAT, VERSION = 0xE5, 1
TRUNCATED = 1  # the one flag
_HEAD = struct.Struct("<BBBxIi")
_CHECKSUM = struct.Struct("<I")
_ROW_AT = _HEAD.size + _CHECKSUM.size
LOOKUP_BATCH_ROWS = 256  # of one look-up; a longer one could not be answered in time by a store that is well
WRITE_BATCH_ROWS = 32  # at a time, so that packing them holds up nobody
WRITE_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 1.0
MAX_WAITING_BYTES = 8 * 1024**2  # of rows to be written; beyond, they are not


# A row's float32 numbers as bytes, its token count (None where a provider does not tell), and whether its text was cut.
# A plain tuple, since the garbage collector stops looking at those of which nothing can be in a cycle.
Entry = tuple[bytes, int | None, bool]


def encode_entry(key: bytes, entry: Entry) -> bytes:
    """Returns the value that stands for an entry."""
    row, tokens, truncated = entry
    head = _HEAD.pack(FORMAT, VERSION, TRUNCATED if truncated else 0, len(row) // 4, -1 if tokens is None else tokens)
    return b"".join((head, _CHECKSUM.pack(crc32(row, crc32(head, crc32(key)))), row))


def decode_entry(key: bytes, value: bytes, width: int) -> Entry | None:
    """Returns the entry of `width` numbers that a value stands for, or None where it is not one of this version's."""
    if len(value) != _ROW_AT + 4 * width:
        return None
    head, row = value[: _HEAD.size], value[_ROW_AT:]
    kind, version, flags, columns, tokens = _HEAD.unpack(head)
    if (kind, version, columns) != (FORMAT, VERSION, width) or flags & ~TRUNCATED or tokens < -1:
        return None
    if _CHECKSUM.unpack_from(value, _HEAD.size)[0] != crc32(row, crc32(head, crc32(key))):
        return None
    return row, None if tokens < 0 else tokens, bool(flags & TRUNCATED)


class StoreError(Exception):
    """A store did not do what it was asked; the message names the kind of error, and nothing of an address."""


class Store(Protocol):
    """Values under keys."""

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Returns the value of each key, or None; raises StoreError."""
        ...

    async def set(self, values: Mapping[bytes, bytes]) -> Sequence[str]:
        """Keeps values; returns why those were refused that were; raises StoreError."""
        ...

    async def ping(self) -> None:
        """Returns once it answers; raises StoreError."""
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


class SharedCache:
    """Asks a store as long as it answers in time, and never fails."""

    def __init__(self, store: Store, clock: Clock, *, timeout_s: float, report: Report) -> None:
        """Takes the time that one look-up may take, and whom to tell when the store stops answering, and again."""
        self._store = store
        self._timeout_s = timeout_s
        self._bypass = Bypass(clock, self._answers, report)
        self._waiting: deque[tuple[bytes, Entry]] = deque()  # to be written
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._refused = ""  # why the last rows were not written

    def start(self) -> None:
        """Begins to ask and to write."""
        self._bypass.start()
        self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Ends what goes on in the background; what is not written is dropped."""
        self._bypass.close()
        if self._writing is not None:
            self._writing.cancel()
        with contextlib.suppress(StoreError):
            await self._store.close()

    async def find(self, keys: Sequence[bytes], width: int) -> dict[bytes, Entry]:
        """Returns the entries of `width` numbers that the store has; none any more once it is late."""
        found: dict[bytes, Entry] = {}
        for first in range(0, len(keys), LOOKUP_BATCH_ROWS):
            part = keys[first : first + LOOKUP_BATCH_ROWS]
            values = await self._values(part)
            if values is None:
                break
            held = {key: value for key, value in zip(part, values, strict=True) if value is not None}
            entries = {key: entry for key, value in held.items() if (entry := decode_entry(key, value, width))}
            found |= entries
            _count(hit=len(entries), miss=len(part) - len(held), bad=len(held) - len(entries))
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Lets entries be written soon, or not at all where the store does not keep up."""
        size = sum(len(row) for row, _, _ in entries.values())
        if self._bypass.is_open:
            return
        if self._waiting_bytes + size > MAX_WAITING_BYTES:
            metrics.CACHE_SHARED_ERRORS.labels("drop").inc()
            return
        self._waiting.extend(entries.items())
        self._waiting_bytes += size
        self._wake.set()

    async def _values(self, keys: Sequence[bytes]) -> Sequence[bytes | None] | None:
        """Returns the values of `keys`, or None where the store is not to be asked, or late."""
        if self._bypass.is_open:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                values = await self._store.get(keys)
        except (StoreError, TimeoutError) as error:
            metrics.CACHE_SHARED_ERRORS.labels("get").inc()
            self._bypass.failed(_why(error))
            return None
        self._bypass.answered()
        return values

    async def _answers(self) -> str:
        """Returns why the store does not answer; nothing where it does, and once connected as fast as a look-up."""
        try:
            async with asyncio.timeout(max(CONNECT_TIMEOUT_S, self._timeout_s)):
                await self._store.ping()
            async with asyncio.timeout(self._timeout_s):
                await self._store.ping()
        except (StoreError, TimeoutError) as error:
            metrics.CACHE_SHARED_ERRORS.labels("ping").inc()
            return _why(error)
        return ""

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            part = [self._waiting.popleft() for _ in range(min(WRITE_BATCH_ROWS, len(self._waiting)))]
            self._waiting_bytes -= sum(len(row) for _, (row, _, _) in part)
            if part:
                self._tell_refusal(await self._written({key: encode_entry(key, entry) for key, entry in part}))
            else:
                self._wake.clear()

    async def _written(self, values: Mapping[bytes, bytes]) -> str:
        """Returns why not all values were kept, else nothing."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                refused = await self._store.set(values)
        except (StoreError, TimeoutError) as error:
            metrics.CACHE_SHARED_ERRORS.labels("set").inc()
            return _why(error)
        metrics.CACHE_SHARED_ERRORS.labels("set").inc(len(refused))
        return refused[0] if refused else ""

    def _tell_refusal(self, why: str) -> None:
        """Writes a line where writing begins to fail, and none while it goes on."""
        if why and not self._refused:
            logs.warning("the shared cache keeps no rows", why=why)
        self._refused = why


def _why(error: Exception) -> str:
    return str(error) or "it is too slow"  # a TimeoutError says nothing


def _count(*, hit: int, miss: int, bad: int) -> None:
    for outcome, rows in (("hit", hit), ("miss", miss), ("bad", bad)):
        if rows:
            metrics.CACHE_ROWS.labels("shared", outcome).inc(rows)
