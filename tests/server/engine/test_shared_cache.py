"""Shared cache: rows of other servers, values that do not verify, an unavailable store, and the format of values."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isogloss.wire.enums import InputType, Truncation
from isogloss_server import metrics
from isogloss_server.engine import shared_cache as module
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.shared_cache import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    UNAVAILABLE,
    VERSION,
    Entry,
    SharedCache,
    StoreError,
    decode_entry,
    encode_entry,
    plausible_entries,
)
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.cached_embedder import CARD, UniqueRowsEmbedder, settle
from tests.support.manual_clock import ManualClock

WIDTH = 16
KEY = bytes(range(32))


class DictStore:
    """A store in a dict, for any number of servers.

    Attributes:
        values: The stored values.
        lookups: The number of keys of each look-up.
        pings: The number of pings.
        error: The error of every operation; none if empty.
        write_error: The error of every value that is written; none if empty.
        stalls: Whether operations never end.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.lookups: list[int] = []
        self.pings = 0
        self.error = ""
        self.write_error = ""
        self.stalls = False

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Returns the values of `keys`."""
        self.lookups.append(len(keys))
        await self._fail_or_stall()
        return [self.values.get(key) for key in keys]

    async def set(self, values: Mapping[bytes, bytes]) -> Sequence[str]:
        """Stores values; returns one error for each that is rejected."""
        await self._fail_or_stall()
        if self.write_error:
            return [self.write_error] * len(values)
        self.values |= values
        return []

    async def ping(self) -> None:
        """Returns if the store is available."""
        self.pings += 1
        await self._fail_or_stall()

    async def close(self) -> None:
        """Does nothing."""

    async def _fail_or_stall(self) -> None:
        if self.error:
            raise StoreError(self.error)
        if self.stalls:
            await asyncio.Event().wait()


class Server:
    """The cache of one server with a shared store, and its embedder, clock and reports of health."""

    def __init__(self, store: DictStore, *, timeout_s: float = 60.0) -> None:
        self.store = store
        self.clock = ManualClock()
        self.embedder = UniqueRowsEmbedder()
        self.reports: list[str] = []
        shared = SharedCache(store, self.clock, timeout_s=timeout_s, on_health=self.reports.append)
        self.cache = Cache(self.clock, max_bytes=0, shared=shared)
        self.shared = shared

    async def embed(self, *texts: str, caller: str = "") -> Embedded:
        """Returns the result of a call after its work in the background is done."""
        urgency = Urgency(caller=caller)
        embedded = await self.cache.embed(self.embedder, texts, InputType.SIMILARITY, Truncation.END, urgency)
        await settle()
        return embedded

    async def start(self) -> "Server":
        """Starts the tasks in the background."""
        self.cache.start()
        await settle()
        return self


@pytest.fixture
def store() -> DictStore:
    return DictStore()


def counted(level: str, outcome: str) -> float:
    labels = {"model": "", "level": level, "outcome": outcome}
    return metrics.REGISTRY.get_sample_value("isogloss_cache_rows_total", labels) or 0.0


def errors(operation: str) -> float:
    return metrics.REGISTRY.get_sample_value("isogloss_cache_shared_errors_total", {"operation": operation}) or 0.0


async def test_servers_share_the_rows_of_each_caller(store: DictStore) -> None:
    """A caller finds its own rows at every server, and no others; no key in the store contains its name."""
    first, second = await Server(store).start(), await Server(store).start()
    await first.embed("a", caller="alice")
    assert (await second.embed("a", caller="bob")).cached_rows == 0
    assert (await second.embed("a", caller="alice")).cached_rows == 1
    assert len(store.values) == 2
    assert not any(b"alice" in key or b"bob" in key for key in store.values)


async def test_servers_share_rows(store: DictStore) -> None:
    """Shared rows have their numbers, token counts and truncation; only texts without a value are computed."""
    one, two = await Server(store).start(), await Server(store).start()
    first = await one.embed("a", "a text that is cut")
    again = await two.embed("a text that is cut", "new", "a")
    assert two.embedder.calls == [["new"]]
    np.testing.assert_array_equal(again.rows[[2, 0]], first.rows)
    assert again.token_counts is not None
    assert again.token_counts.tolist() == [10, 3, 1]
    assert (again.truncated_rows, again.cached_rows, again.total_tokens) == ((0,), 2, 14)
    for server in (one, two):
        await server.cache.close()


async def test_a_large_call_is_looked_up_in_parts(store: DictStore) -> None:
    """A look-up has at most LOOKUP_BATCH_ROWS keys, so that it ends within the timeout."""
    server = await Server(store).start()
    await server.embed(*(f"{n}" for n in range(2 * module.LOOKUP_BATCH_ROWS + 1)))
    assert store.lookups == [module.LOOKUP_BATCH_ROWS, module.LOOKUP_BATCH_ROWS, 1]
    await server.cache.close()


async def test_values_that_do_not_verify_are_counted_and_replaced(store: DictStore) -> None:
    """Invalid bytes, values of another version and values of another key are computed again and overwritten."""
    one = await Server(store).start()
    first = await one.embed("a", "b", "c", "d")
    keys = list(store.values)
    store.values[keys[0]] = b"garbage"
    store.values[keys[1]] = store.values[keys[1]][:1] + bytes([VERSION + 1]) + store.values[keys[1]][2:]
    store.values[keys[2]] = store.values[keys[3]]
    before, two = counted("shared", "bad"), await Server(store).start()
    recomputed = await two.embed("a", "b", "c", "d")
    assert two.embedder.calls == [["a", "b", "c"]]
    np.testing.assert_array_equal(recomputed.rows[3], first.rows[3])
    assert counted("shared", "bad") - before == 3
    three = await Server(store).start()
    np.testing.assert_array_equal((await three.embed("a", "b", "c", "d")).rows, recomputed.rows)
    assert three.embedder.calls == []
    for server in (one, two, three):
        await server.cache.close()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param((np.full(WIDTH, np.nan, "<f4").tobytes(), 1, False), id="not a number"),
        pytest.param((np.array([1.0] * (WIDTH - 1) + [-np.inf], "<f4").tobytes(), 1, False), id="one infinite number"),
        pytest.param((bytes(4 * WIDTH), CARD.max_tokens + 1, False), id="more tokens than the model reads"),
        pytest.param((bytes(4 * WIDTH), 2**31 - 1, False), id="the largest count"),
        pytest.param((bytes(4 * WIDTH), 0, False), id="no tokens"),
        pytest.param((bytes(4 * WIDTH), None, False), id="no count, of a local model"),
    ],
)
async def test_values_that_the_model_cannot_have_computed_are_replaced(store: DictStore, entry: Entry) -> None:
    """A value with a right checksum and impossible contents is counted, computed again and overwritten."""
    one = await Server(store).start()
    await one.embed("a", "b")
    forged, honest = list(store.values)
    store.values[forged] = encode_entry(forged, entry)
    before, two = counted("shared", "bad"), await Server(store).start()
    result = await two.embed("a", "b")
    assert two.embedder.calls == [["a"]]
    assert np.isfinite(result.rows).all()
    assert (result.token_counts.tolist() if result.token_counts is not None else None) == [1, 1]
    assert counted("shared", "bad") - before == 1
    assert decode_entry(forged, store.values[forged], WIDTH) not in {None, entry}
    assert honest in store.values
    for server in (one, two):
        await server.cache.close()


def test_a_token_count_is_impossible_for_a_model_of_a_provider() -> None:
    """Providers report no token counts, so an entry of theirs has none."""
    counted_entry, plain = (bytes(4 * WIDTH), 3, False), (bytes(4 * WIDTH), None, False)
    card = replace(CARD, has_token_counts=False, max_tokens=0)
    assert plausible_entries({KEY: counted_entry}, card) == {}
    assert plausible_entries({KEY: plain}, card) == {KEY: plain}


@pytest.mark.parametrize("error", ["ConnectionError", ""])
async def test_an_unavailable_store_is_bypassed_until_a_probe_succeeds(store: DictStore, error: str) -> None:
    """After consecutive errors or timeouts the circuit breaker opens and reports the cause; a probe closes it."""
    server = await Server(store, timeout_s=60.0 if error else 0.001).start()
    await server.embed("known")
    store.error, store.stalls = error, not error
    for number in range(FAILURES_TO_OPEN + 5):
        await server.embed(f"{number}")
    assert len(store.lookups) == 1 + FAILURES_TO_OPEN
    assert [UNAVAILABLE in detail for detail in server.reports] == [True]
    for pause_s in (FIRST_PAUSE_S, 1.0, 2.0, 4.0, MAX_PAUSE_S, MAX_PAUSE_S):
        sleeps, pings = len(server.clock.requested_sleeps_s), store.pings
        assert server.clock.requested_sleeps_s[-1] == pause_s
        server.clock.advance(pause_s)
        await server.clock.wait_for_sleeps(sleeps + 1)
        assert store.pings == pings + 1
    store.error, store.stalls = "", False
    server.clock.advance(MAX_PAUSE_S)
    await settle()
    assert server.reports[1:] == [""]
    assert (await server.embed("known")).cached_rows == 1
    store.error = "ConnectionError"
    await server.embed("a single failure")
    store.error = ""
    assert (await server.embed("known")).cached_rows == 1
    assert len(server.reports) == 2
    await server.cache.close()


async def test_single_failures_do_not_open_the_circuit_breaker(store: DictStore) -> None:
    """Failures with successes in between do not open the circuit breaker."""
    server = await Server(store).start()
    for number in range(4 * FAILURES_TO_OPEN):
        store.error = "TimeoutError" if number % 2 else ""
        await server.embed(f"{number}")
    assert len(store.lookups) == 4 * FAILURES_TO_OPEN
    assert server.reports == []
    await server.cache.close()


async def test_a_store_that_is_unavailable_at_start_does_not_delay_calls(store: DictStore) -> None:
    """The cache reports the cause from the start, and calls are served without the store."""
    store.error = "AuthenticationError"
    server = await Server(store).start()
    assert server.reports == [f"{UNAVAILABLE}: AuthenticationError"]
    assert (await server.embed("a")).cached_rows == 0
    assert store.lookups == []
    await server.cache.close()


async def test_a_store_that_rejects_writes_is_logged_once(store: DictStore, caplog: pytest.LogCaptureFixture) -> None:
    """A full or read-only store is still read; rejected writes are counted, and logged once until one succeeds."""
    server = await Server(store).start()
    store.write_error, before = "OutOfMemoryError", errors("set")
    with caplog.at_level(logging.WARNING):
        await server.embed("a", "b")
        await server.embed("c")
        store.write_error = ""
        await server.embed("d")
        store.write_error = "ReadOnlyError"
        await server.embed("e")
    lines = [record.fields["cause"] for record in caplog.records]  # type: ignore[attr-defined]
    assert lines == ["OutOfMemoryError", "ReadOnlyError"]
    assert errors("set") - before == 4
    assert server.reports == []
    assert (await server.embed("d")).cached_rows == 1
    await server.cache.close()


async def test_rows_that_wait_to_be_written_are_bounded(store: DictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the limit are dropped and counted; those within it are written later."""
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 10 * 4 * WIDTH)
    server, before = Server(store), errors("drop")
    entries: dict[bytes, Entry] = {bytes([n]): (bytes(4 * WIDTH), 1, False) for n in range(8)}
    server.shared.put(entries)
    server.shared.put({b"x" + key: entry for key, entry in entries.items()})
    assert errors("drop") - before == 1
    await server.start()
    assert set(store.values) == set(entries)
    server.shared.put({b"x" + key: entry for key, entry in entries.items()})
    await settle()
    assert len(store.values) == 16
    await server.cache.close()


async def test_a_stalled_write_does_not_delay_calls(store: DictStore) -> None:
    """Calls are served while a write stalls, and closing the cache cancels it."""
    server = await Server(store).start()
    await server.embed("a")
    stalled = await Server(store).start()
    store.stalls = True
    stalled.shared.put({KEY: (bytes(4 * WIDTH), 1, False)})
    await settle()
    store.stalls = False
    assert (await stalled.embed("a")).cached_rows == 1
    for one in (server, stalled):
        await one.cache.close()


ENTRIES = st.builds(
    lambda row, tokens, truncated: (np.array(row, "<f4").tobytes(), tokens, truncated),
    st.lists(st.floats(width=32), min_size=WIDTH, max_size=WIDTH),
    st.none() | st.integers(0, 2**31 - 1),
    st.booleans(),
)


@given(ENTRIES)
def test_an_entry_survives_encoding(entry: Entry) -> None:
    """A row, its token count and its truncation are decoded bit for bit."""
    assert decode_entry(KEY, encode_entry(KEY, entry), WIDTH) == entry


@given(ENTRIES, st.data())
def test_an_altered_value_is_rejected(entry: Entry, data: st.DataObject) -> None:
    """A value with a different byte, length, key or width decodes to None."""
    value = encode_entry(KEY, entry)
    at, bits = data.draw(st.integers(0, len(value) - 1)), data.draw(st.integers(1, 255))
    changed = value[:at] + bytes([value[at] ^ bits]) + value[at + 1 :]
    for broken in (changed, value[:at], value + b"\0"):
        assert decode_entry(KEY, broken, WIDTH) is None
    assert decode_entry(KEY[::-1], value, WIDTH) is None
    assert decode_entry(KEY, value, WIDTH + 1) is None


@given(st.binary(max_size=2 * WIDTH * 4))
def test_random_bytes_are_rejected(value: bytes) -> None:
    """Any other bytes decode to None without an error."""
    assert decode_entry(KEY, value, WIDTH) is None
