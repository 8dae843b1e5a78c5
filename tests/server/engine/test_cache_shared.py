"""The shared cache is asked while it answers in time, believed where its values verify, and never fails a call."""

import logging

import numpy as np
import pytest
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
)
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.changing_embedder import ChangingEmbedder, settle
from tests.support.dict_store import DictStore
from tests.support.own_time import OwnTime

WIDTH = 16
KEY = bytes(range(32))


class Server:
    """One server's cache before a store, with its own embedder, clock and health."""

    def __init__(self, store: DictStore, *, timeout_s: float = 60.0) -> None:
        self.store = store
        self.clock = OwnTime()
        self.embedder = ChangingEmbedder()
        self.told: list[str] = []
        shared = SharedCache(store, self.clock, timeout_s=timeout_s, on_health=self.told.append)
        self.cache = Cache(self.clock, max_bytes=0, shared=shared)
        self.shared = shared

    async def ask(self, *texts: str) -> Embedded:
        """Returns what a call gets, once all that it leaves to do is done."""
        answer = await self.cache.embed(self.embedder, texts, InputType.SIMILARITY, Truncation.END, Urgency())
        await settle()
        return answer

    async def start(self) -> "Server":
        """Begins what goes on in the background."""
        self.cache.start()
        await settle()
        return self


@pytest.fixture
def store() -> DictStore:
    return DictStore()


def counted(level: str, outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("isogloss_cache_rows_total", {"level": level, "outcome": outcome}) or 0.0


def errors(operation: str) -> float:
    return metrics.REGISTRY.get_sample_value("isogloss_cache_shared_errors_total", {"operation": operation}) or 0.0


async def test_what_one_server_computed_another_has(store: DictStore) -> None:
    """Numbers, token counts and truncation come back unaltered, and only what the store lacks is computed."""
    one, two = await Server(store).start(), await Server(store).start()
    first = await one.ask("a", "a text that is cut")
    again = await two.ask("a text that is cut", "new", "a")
    assert two.embedder.calls == [["new"]]
    np.testing.assert_array_equal(again.rows[[2, 0]], first.rows)
    assert again.token_counts is not None
    assert again.token_counts.tolist() == [10, 3, 1]
    assert (again.truncated_rows, again.cached_rows, again.total_tokens) == ((0,), 2, 14)
    for server in (one, two):
        await server.cache.close()


async def test_a_large_call_asks_in_parts(store: DictStore) -> None:
    """No look-up is so large that a store that is well could not answer in time."""
    server = await Server(store).start()
    await server.ask(*(f"{n}" for n in range(2 * module.LOOKUP_BATCH_ROWS + 1)))
    assert store.asked == [module.LOOKUP_BATCH_ROWS, module.LOOKUP_BATCH_ROWS, 1]
    await server.cache.close()


async def test_values_that_do_not_verify_are_ignored_and_counted(store: DictStore) -> None:
    """Garbage, another version's values, and those of another key are computed anew, and written over."""
    one = await Server(store).start()
    first = await one.ask("a", "b", "c", "d")
    keys = list(store.values)
    store.values[keys[0]] = b"garbage"
    store.values[keys[1]] = store.values[keys[1]][:1] + bytes([VERSION + 1]) + store.values[keys[1]][2:]
    store.values[keys[2]] = store.values[keys[3]]
    before, two = counted("shared", "bad"), await Server(store).start()
    answer = await two.ask("a", "b", "c", "d")
    assert two.embedder.calls == [["a", "b", "c"]]
    np.testing.assert_array_equal(answer.rows[3], first.rows[3])
    assert counted("shared", "bad") - before == 3
    three = await Server(store).start()
    np.testing.assert_array_equal((await three.ask("a", "b", "c", "d")).rows, answer.rows)
    assert three.embedder.calls == []
    for server in (one, two, three):
        await server.cache.close()


@pytest.mark.parametrize("why", ["ConnectionError", ""])
async def test_it_is_bypassed_where_it_does_not_answer_and_comes_back_by_itself(store: DictStore, why: str) -> None:
    """After some faults, of an error or of time, nobody asks it and health says so; probes find out when it is well."""
    server = await Server(store, timeout_s=60.0 if why else 0.001).start()
    await server.ask("known")
    store.why, store.hangs = why, not why
    for number in range(FAILURES_TO_OPEN + 5):
        await server.ask(f"{number}")
    assert len(store.asked) == 1 + FAILURES_TO_OPEN
    assert [UNAVAILABLE in detail for detail in server.told] == [True]
    for pause_s in (FIRST_PAUSE_S, 1.0, 2.0, 4.0, MAX_PAUSE_S, MAX_PAUSE_S):
        asleep, pings = len(server.clock.slept_s), store.pings
        assert server.clock.slept_s[-1] == pause_s
        server.clock.pass_s(pause_s)
        await server.clock.asleep(asleep + 1)
        assert store.pings == pings + 1
    store.why, store.hangs = "", False
    server.clock.pass_s(MAX_PAUSE_S)
    await settle()
    assert server.told[1:] == [""]
    assert (await server.ask("known")).cached_rows == 1
    store.why = "ConnectionError"
    await server.ask("a single fault, as good as before")
    store.why = ""
    assert (await server.ask("known")).cached_rows == 1
    assert len(server.told) == 2
    await server.cache.close()


async def test_a_single_late_answer_is_nothing(store: DictStore) -> None:
    """Faults with answers between them keep nobody from asking."""
    server = await Server(store).start()
    for number in range(4 * FAILURES_TO_OPEN):
        store.why = "TimeoutError" if number % 2 else ""
        await server.ask(f"{number}")
    assert len(store.asked) == 4 * FAILURES_TO_OPEN
    assert server.told == []
    await server.cache.close()


async def test_a_store_that_is_down_at_the_start_holds_up_nobody(store: DictStore) -> None:
    """From the start health says that it does not answer, and why, and calls are served without it."""
    store.why = "AuthenticationError"
    server = await Server(store).start()
    assert server.told == [f"{UNAVAILABLE}: AuthenticationError"]
    assert (await server.ask("a")).cached_rows == 0
    assert store.asked == []
    await server.cache.close()


async def test_a_store_that_keeps_nothing_is_told_of_once(store: DictStore, caplog: pytest.LogCaptureFixture) -> None:
    """A full or read-only store is read from, its refusals are counted, and one line says so until it keeps rows."""
    server = await Server(store).start()
    store.refusal, before = "OutOfMemoryError", errors("set")
    with caplog.at_level(logging.WARNING):
        await server.ask("a", "b")
        await server.ask("c")
        store.refusal = ""
        await server.ask("d")
        store.refusal = "ReadOnlyError"
        await server.ask("e")
    lines = [record.fields["cause"] for record in caplog.records]  # type: ignore[attr-defined]
    assert lines == ["OutOfMemoryError", "ReadOnlyError"]
    assert errors("set") - before == 4
    assert server.told == []
    assert (await server.ask("d")).cached_rows == 1
    await server.cache.close()


async def test_what_waits_to_be_written_is_bounded(store: DictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing lags, rows are dropped rather than gathered, and counted; what fits is written later."""
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


async def test_a_write_that_hangs_holds_up_no_call(store: DictStore) -> None:
    """Calls are answered while nothing is written, and closing ends it."""
    server = await Server(store).start()
    await server.ask("a")
    hanging = await Server(store).start()
    store.hangs = True
    hanging.shared.put({KEY: (bytes(4 * WIDTH), 1, False)})
    await settle()
    store.hangs = False
    assert (await hanging.ask("a")).cached_rows == 1
    for one in (server, hanging):
        await one.cache.close()
