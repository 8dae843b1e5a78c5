"""Cache in memory: hits, misses, keys, eviction, and the memory that it uses."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import ENTRY_BYTES, Cache, MemoryCache, cache_keys
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.cached_embedder import CARD, UniqueRowsEmbedder

INTERACTIVE = Urgency()
MAX_BYTES = 1 << 20


def make_cache(**changes: Any) -> Cache:
    return Cache(SystemClock(), **{"max_bytes": MAX_BYTES, **changes})


async def embed(cache: Cache, embedder: UniqueRowsEmbedder, *texts: str, urgency: Urgency = INTERACTIVE) -> Embedded:
    return await cache.embed(embedder, texts, InputType.SIMILARITY, Truncation.END, urgency)


async def test_a_hit_has_the_computed_row_token_count_and_truncation() -> None:
    """A repeated text has the same row, token count and truncation, and the embedder is not called."""
    cache, embedder = make_cache(), UniqueRowsEmbedder()
    texts = ["a", "a text that is cut", "ccc"]
    first = await embed(cache, embedder, *texts)
    again = await embed(cache, embedder, *reversed(texts))
    assert len(embedder.calls) == 1
    assert again.rows.tobytes() == first.rows[::-1].tobytes()
    assert again.token_counts is not None
    assert again.token_counts.tolist() == [3, 10, 1]
    assert (again.truncated_rows, again.total_tokens, again.inference_s) == ((1,), 14, 0.0)
    assert (first.cached_rows, again.cached_rows) == (0, 3)


async def test_cached_and_new_texts_of_a_call_each_have_their_own_row() -> None:
    """The embedder receives each distinct text that is not cached once; rows are in the order of the texts."""
    cache, embedder = make_cache(), UniqueRowsEmbedder()
    cached = await embed(cache, embedder, "k1", "k2")
    mixed = await embed(cache, embedder, "n1", "k2", "n2", "n1", "k1", "k2")
    assert embedder.calls == [["k1", "k2"], ["n1", "n2"]]
    again = await embed(cache, embedder, "n1", "n2")
    rows = [again.rows[0], cached.rows[1], again.rows[1], again.rows[0], cached.rows[0], cached.rows[1]]
    np.testing.assert_array_equal(mixed.rows, rows)
    assert mixed.cached_rows == 4
    assert mixed.total_tokens == 12


async def test_a_hit_without_token_counts_costs_no_tokens() -> None:
    """Without token counts of the embedder there are none for hits; the total is that of the computed texts."""
    cache, embedder = make_cache(), UniqueRowsEmbedder(counts=False)
    first = await embed(cache, embedder, "aa", "b")
    again = await embed(cache, embedder, "aa", "b")
    mixed = await embed(cache, embedder, "aa", "cccc")
    assert [part.token_counts for part in (first, again, mixed)] == [None] * 3
    assert [part.total_tokens for part in (first, again, mixed)] == [3, 0, 4]


async def test_row_errors_have_the_rows_of_the_call_and_are_not_cached() -> None:
    """A text with an error, twice in a call beside cached texts, has an error in each of its rows."""
    cache, embedder = make_cache(), UniqueRowsEmbedder()
    await embed(cache, embedder, "good")
    for _ in range(2):
        failed = await embed(cache, embedder, "good", "!!!", "new", "!!!")
        assert set(failed.row_errors) == {1, 3}
        assert failed.row_errors[1].at("texts", 1) is not failed.row_errors[3]
    assert (await embed(cache, embedder, "good", "new")).cached_rows == 1


@pytest.mark.parametrize(
    ("changes", "models"),
    [({"max_bytes": 0}, {}), ({"static_models": False}, {"backend": "static"})],
)
async def test_a_disabled_cache_stores_nothing(changes: dict[str, Any], models: dict[str, Any]) -> None:
    """The cache is off with 0 bytes, and for static models if they are excluded."""
    cache, embedder = make_cache(**changes), UniqueRowsEmbedder(replace(CARD, **models))
    assert not cache.is_used_by(embedder.card)
    for _ in range(2):
        assert (await embed(cache, embedder, "a", "a")).cached_rows == 0
    assert embedder.calls == [["a", "a"]] * 2


@pytest.mark.parametrize(
    "other",
    [
        (replace(CARD, space_id="s-other"), InputType.QUERY, Truncation.END),
        (replace(CARD, backend="other"), InputType.QUERY, Truncation.END),
        (CARD, InputType.QUERY, Truncation.START),
        (replace(CARD, has_roles=True), InputType.QUERY, Truncation.END),
        (replace(CARD, has_roles=True), InputType.DOCUMENT, Truncation.END),
    ],
)
def test_a_key_depends_on_all_that_its_row_depends_on(other: Any) -> None:
    """The key of a text depends on space, runtime, input type and truncation."""
    assert not set(cache_keys(["a", "b"], *other)) & set(cache_keys(["a", "b"], CARD, InputType.QUERY, Truncation.END))


def test_callers_have_keys_of_their_own() -> None:
    """No text of a caller has the key of a text of another one, whatever it contains, nor does a key contain a name."""
    texts, options = ["a", "b", "alice\0a", "a\0alice"], (CARD, InputType.QUERY, Truncation.END)
    keys = [key for caller in ("", "alice", "bob") for key in cache_keys(texts, *options, caller=caller)]
    assert len(set(keys)) == len(keys)
    assert not any(b"alice" in key for key in keys)


@pytest.mark.parametrize("isolated", [True, False])
async def test_a_caller_gets_no_rows_of_another_one_if_callers_are_isolated(*, isolated: bool) -> None:
    """With isolation, a text that another caller embedded is computed, and is not cached for admission; else it is."""
    cache, embedder = make_cache(isolated=isolated), UniqueRowsEmbedder()
    options = InputType.SIMILARITY, Truncation.END
    for caller, cached in (("alice", 0), ("alice", 1), ("bob", not isolated), ("", not isolated), ("bob", 1)):
        assert cache.has(CARD, ["a"], *options, caller) == bool(cached)
        embedded = await cache.embed(embedder, ["a"], *options, Urgency(caller=caller))
        assert embedded.cached_rows == cached
    assert len(embedder.calls) == (3 if isolated else 1)


def test_roles_without_effect_share_a_key() -> None:
    """Without roles a text has one key for all input types; different texts have different keys."""
    keys = {
        key for input_type in InputType for key in cache_keys(["a", "b", "", "a\0b"], CARD, input_type, Truncation.END)
    }
    assert len(keys) == 4


def entry(size: int = 1024) -> Any:
    return bytes(size), 5, False


def test_the_least_recently_used_entry_is_evicted() -> None:
    """Beyond the limit of bytes the entry whose last use is oldest is evicted, and no entry before."""
    memory = MemoryCache(3 * (1024 + ENTRY_BYTES))
    memory.put({b"a": entry(), b"b": entry(), b"c": entry()})
    memory.find([b"a"])
    memory.put({b"d": entry()})
    assert [found is not None for found in memory.find([b"a", b"b", b"c", b"d"])] == [True, False, True, True]
    assert memory.size_bytes == 3 * (1024 + ENTRY_BYTES)


def test_a_row_larger_than_the_cache_evicts_no_entry() -> None:
    """A row that exceeds the limit is not stored, and other entries stay."""
    memory = MemoryCache(2048)
    memory.put({b"a": entry()})
    memory.put({b"b": entry(4096)})
    assert [found is not None for found in memory.find([b"a", b"b"])] == [True, False]


@pytest.mark.parametrize("width", [3, 256, 1024])
def test_the_limit_covers_the_memory_that_is_allocated(width: int) -> None:
    """The allocated memory, tables and keys included, is within the limit and above half of it."""
    max_bytes = 4 << 20
    tracemalloc.start()
    memory = MemoryCache(max_bytes)
    before, _ = tracemalloc.get_traced_memory()
    for number in range(4 * max_bytes // (4 * width + ENTRY_BYTES)):
        memory.put({number.to_bytes(32, "big"): (bytes(4 * width), 1000 + number, False)})
    allocated = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(memory) == max_bytes // (4 * width + ENTRY_BYTES)
    assert 0.5 * max_bytes < allocated <= max_bytes


def test_a_stored_row_is_not_replaced() -> None:
    """A second computation of a text does not change its entry."""
    memory = MemoryCache(MAX_BYTES)
    memory.put({b"a": (b"one.", 1, False)})
    memory.put({b"a": (b"two.", 1, False)})
    assert memory.find([b"a"]) == [(b"one.", 1, False)]


async def test_an_incomplete_result_is_not_cached() -> None:
    """A result with too few rows fails the call, and the next call computes its texts again."""

    class Short(UniqueRowsEmbedder):
        async def embed(self, *arguments: Any, **options: Any) -> Embedded:
            embedded = await super().embed(*arguments, **options)
            return replace(embedded, rows=embedded.rows[1:]) if len(self.calls) == 1 else embedded

    cache, embedder = make_cache(), Short()
    with pytest.raises((ValueError, IndexError)):
        await embed(cache, embedder, "a", "b")
    assert (await embed(cache, embedder, "a", "b")).cached_rows == 0


async def test_cached_rows_do_not_share_memory_with_the_result() -> None:
    """Entries are copies, which do not hold the matrix of the call in memory."""
    cache, embedder = make_cache(), UniqueRowsEmbedder()
    result = await embed(cache, embedder, "a", "b")
    result.rows[:] = 0
    assert (await embed(cache, embedder, "a", "b")).rows.all()


async def test_a_row_error_counts_as_a_miss() -> None:
    """The metric of a call that fails by a row error counts its texts as computed, not as another call's."""
    from isogloss_server import metrics

    def rows(outcome: str) -> float:
        labels = {"model": "", "level": "memory", "outcome": outcome}
        return metrics.REGISTRY.get_sample_value("isogloss_cache_rows_total", labels) or 0.0

    before = {outcome: rows(outcome) for outcome in ("hit", "joined", "miss")}
    failed = await embed(make_cache(), UniqueRowsEmbedder(), "good", "!!!")
    assert set(failed.row_errors) == {1}
    assert {outcome: rows(outcome) - before[outcome] for outcome in before} == {"hit": 0, "joined": 0, "miss": 2}
