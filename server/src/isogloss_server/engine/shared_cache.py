"""A cache that several servers share: look-ups with a time limit, writes in the background, a versioned row format."""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from zlib import crc32

import numpy as np

from isogloss_server import logs, metrics
from isogloss_server.circuit_breaker import CircuitBreaker
from isogloss_server.clock import Clock
from isogloss_server.models.interfaces import ModelCard

FORMAT, VERSION = 0xE5, 1
TRUNCATED = 1  # flag: the text was truncated
_HEAD = struct.Struct("<BBBxIi")  # format, version, flags, columns, token count
_CHECKSUM = struct.Struct("<I")
_ROW_OFFSET = _HEAD.size + _CHECKSUM.size
LOOKUP_BATCH_ROWS = 256  # of one look-up, so that a healthy store responds within the time limit
WRITE_BATCH_ROWS = 32  # of one write, so that encoding them blocks the event loop only briefly
WRITE_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 1.0
MAX_PENDING_BYTES = 8 * 1024**2  # of rows to be written; further rows are dropped
FAILURES_TO_OPEN = 3  # consecutive ones: a single late response is normal
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 8.0
UNAVAILABLE = "shared cache unavailable"

# A row's float32 numbers as bytes, its token count (None if a provider does not report it), and whether its text was
# truncated. A plain tuple, since the garbage collector untracks tuples of atomic values.
Entry = tuple[bytes, int | None, bool]


def encode_entry(key: bytes, entry: Entry) -> bytes:
    """Encodes an entry as a value of the store: head, checksum (CRC 32 of key, head and row), row."""
    row, tokens, truncated = entry
    head = _HEAD.pack(FORMAT, VERSION, TRUNCATED if truncated else 0, len(row) // 4, -1 if tokens is None else tokens)
    return b"".join((head, _CHECKSUM.pack(crc32(row, crc32(head, crc32(key)))), row))


def decode_entry(key: bytes, value: bytes, width: int) -> Entry | None:
    """Decodes a value of the store.

    Args:
        key: The key that the value was found under; the checksum covers it.
        value: The bytes in the store.
        width: The number of columns that the row must have.

    Returns:
        The entry, or None if the value is damaged, or of another key, version or width.
    """
    if len(value) != _ROW_OFFSET + 4 * width:
        return None
    head, row = value[: _HEAD.size], value[_ROW_OFFSET:]
    kind, version, flags, columns, tokens = _HEAD.unpack(head)
    if (kind, version, columns) != (FORMAT, VERSION, width) or flags & ~TRUNCATED or tokens < -1:
        return None
    if _CHECKSUM.unpack_from(value, _HEAD.size)[0] != crc32(row, crc32(head, crc32(key))):
        return None
    return row, None if tokens < 0 else tokens, bool(flags & TRUNCATED)


def plausible_entries(entries: Mapping[bytes, Entry], card: ModelCard) -> dict[bytes, Entry]:
    """Returns the entries that a model can have computed, since a checksum does not prove who wrote a value.

    The numbers of such a row are finite. It has a token count of 1 to the model's `max_tokens`, or none if the model
    is a provider's.
    """
    if not entries:
        return {}
    rows = np.frombuffer(b"".join([row for row, _, _ in entries.values()]), "<f4")
    finite = np.isfinite(rows.reshape(len(entries), -1)).all(axis=1)
    counts = range(1, card.max_tokens + 1) if card.has_token_counts else (None,)
    return {
        key: entry
        for (key, entry), is_finite in zip(entries.items(), finite, strict=True)
        if is_finite and entry[1] in counts
    }


class StoreError(Exception):
    """An operation of the store failed; the message is the cause, without addresses or keys."""


class Store(Protocol):
    """A key-value store."""

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Returns the value of each key, None for a missing one; raises StoreError."""
        ...

    async def set(self, values: Mapping[bytes, bytes]) -> Sequence[str]:
        """Stores values; returns the cause for each value that the store rejected; raises StoreError."""
        ...

    async def ping(self) -> None:
        """Returns when the store has responded; raises StoreError."""
        ...

    async def close(self) -> None:
        """Closes all connections; raises StoreError."""
        ...


class SharedCache:
    """Looks rows up in a store and writes them to it; a failure of the store is a miss, never an error of a call."""

    def __init__(self, store: Store, clock: Clock, *, timeout_s: float, on_health: Callable[[str], None]) -> None:
        """Creates a cache that is idle until `start`.

        Args:
            store: Holds the values.
            clock: Measures the pauses between probes of a store that fails.
            timeout_s: Time limit of one look-up, in seconds.
            on_health: Receives the reason when the store becomes unavailable, and an empty string when it recovers.
        """
        self._store = store
        self._timeout_s = timeout_s
        self._on_health = on_health
        self._breaker = CircuitBreaker(
            clock,
            self._probe,
            self._report_health,
            failures_to_open=FAILURES_TO_OPEN,
            first_pause_s=FIRST_PAUSE_S,
            max_pause_s=MAX_PAUSE_S,
        )
        metrics.CACHE_SHARED_OPEN.set_function(lambda: self._breaker.is_open)
        self._pending: deque[tuple[bytes, Entry]] = deque()  # to be written
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._rejection = ""  # cause of the last failed write; empty after a successful one

    def start(self) -> None:
        """Starts a first probe, and the task that writes. Look-ups begin when the probe has succeeded."""
        self._breaker.start()
        self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Stops the tasks and closes the store; rows not yet written are dropped."""
        self._breaker.stop()
        if self._writing is not None:
            self._writing.cancel()
        with contextlib.suppress(StoreError):
            await self._store.close()

    async def find(self, keys: Sequence[bytes], card: ModelCard, model: str = "") -> dict[bytes, Entry]:
        """Looks keys up, in batches; the first batch that fails or is late ends the look-up.

        Args:
            keys: The keys.
            card: The card of their model.
            model: The name that it is served under, for metrics.

        Returns:
            The entries found that the model of `card` can have computed.
        """
        width = card.dimensions[0]
        found: dict[bytes, Entry] = {}
        for first in range(0, len(keys), LOOKUP_BATCH_ROWS):
            part = keys[first : first + LOOKUP_BATCH_ROWS]
            values = await self._values(part)
            if values is None:
                break
            present = {key: value for key, value in zip(part, values, strict=True) if value is not None}
            decoded = {key: entry for key, value in present.items() if (entry := decode_entry(key, value, width))}
            entries = plausible_entries(decoded, card)
            found |= entries
            _count(model, hit=len(entries), miss=len(part) - len(present), bad=len(present) - len(entries))
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Queues entries to be written; drops them if the store is unavailable or too slow."""
        size = sum(len(row) for row, _, _ in entries.values())
        if self._breaker.is_open:
            return
        if self._pending_bytes + size > MAX_PENDING_BYTES:
            metrics.CACHE_SHARED_ERRORS.labels("drop").inc()
            return
        self._pending.extend(entries.items())
        self._pending_bytes += size
        self._wake.set()

    async def _values(self, keys: Sequence[bytes]) -> Sequence[bytes | None] | None:
        """Returns the values of `keys`, or None if the store is unavailable or late."""
        if self._breaker.is_open:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                values = await self._store.get(keys)
        except (StoreError, TimeoutError) as error:
            metrics.CACHE_SHARED_ERRORS.labels("get").inc()
            self._breaker.failed(_cause(error))
            return None
        self._breaker.succeeded()
        return values

    async def _probe(self) -> str:
        """Connects, then requires a response within the time limit of a look-up; returns the cause of a failure."""
        try:
            async with asyncio.timeout(max(CONNECT_TIMEOUT_S, self._timeout_s)):
                await self._store.ping()
            async with asyncio.timeout(self._timeout_s):
                await self._store.ping()
        except (StoreError, TimeoutError) as error:
            metrics.CACHE_SHARED_ERRORS.labels("ping").inc()
            return _cause(error)
        return ""

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            part = [self._pending.popleft() for _ in range(min(WRITE_BATCH_ROWS, len(self._pending)))]
            self._pending_bytes -= sum(len(row) for _, (row, _, _) in part)
            if part:
                self._log_rejection(await self._written({key: encode_entry(key, entry) for key, entry in part}))
            else:
                self._wake.clear()

    async def _written(self, values: Mapping[bytes, bytes]) -> str:
        """Writes values; returns the cause if not all were stored."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                rejected = await self._store.set(values)
        except (StoreError, TimeoutError) as error:
            metrics.CACHE_SHARED_ERRORS.labels("set").inc()
            return _cause(error)
        metrics.CACHE_SHARED_ERRORS.labels("set").inc(len(rejected))
        return rejected[0] if rejected else ""

    def _log_rejection(self, cause: str) -> None:
        """Logs the first of several consecutive failed writes."""
        if cause and not self._rejection:
            logs.warning("writing to the shared cache failed", cause=cause)
        self._rejection = cause

    def _report_health(self, cause: str) -> None:
        self._on_health(f"{UNAVAILABLE}: {cause}" if cause else "")


def _cause(error: Exception) -> str:
    return str(error) or "no response within the time limit"  # a TimeoutError has no message


def _count(model: str, *, hit: int, miss: int, bad: int) -> None:
    for outcome, rows in (("hit", hit), ("miss", miss), ("bad", bad)):
        if rows:
            metrics.cache_rows(model, "shared", outcome).inc(rows)
