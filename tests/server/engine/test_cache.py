"""What is known is not computed again, and comes back as it was."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Priority, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import ENTRY_BYTES, Cache, MemoryCache, cache_keys
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.changing_embedder import CARD, ChangingEmbedder

SOON, LATER = Urgency(), Urgency(Priority.BULK)
ROOM = 1 << 20


def cache(**changes: Any) -> Cache:
    return Cache(SystemClock(), **{"max_bytes": ROOM, **changes})


async def ask(cache: Cache, embedder: ChangingEmbedder, *texts: str, urgency: Urgency = SOON) -> Embedded:
    return await cache.embed(embedder, texts, InputType.SIMILARITY, Truncation.END, urgency)


async def test_a_hit_is_the_row_as_it_was_with_its_tokens_and_its_cut() -> None:
    """A text that comes again has the same numbers, token count and truncation, and the embedder is not asked."""
    one, embedder = cache(), ChangingEmbedder()
    texts = ["a", "a text that is cut", "ccc"]
    first = await ask(one, embedder, *texts)
    again = await ask(one, embedder, *reversed(texts))
    assert len(embedder.calls) == 1
    assert again.rows.tobytes() == first.rows[::-1].tobytes()
    assert again.token_counts is not None
    assert again.token_counts.tolist() == [3, 10, 1]
    assert (again.truncated_rows, again.total_tokens, again.inference_s) == ((1,), 14, 0.0)
    assert (first.cached_rows, again.cached_rows) == (0, 3)


async def test_known_and_new_texts_of_a_call_each_get_their_own_row() -> None:
    """The embedder is asked for each distinct unknown text once, and every row stands where its text does."""
    one, embedder = cache(), ChangingEmbedder()
    known = await ask(one, embedder, "k1", "k2")
    mixed = await ask(one, embedder, "n1", "k2", "n2", "n1", "k1", "k2")
    assert embedder.calls == [["k1", "k2"], ["n1", "n2"]]
    again = await ask(one, embedder, "n1", "n2")
    rows = [again.rows[0], known.rows[1], again.rows[1], again.rows[0], known.rows[0], known.rows[1]]
    np.testing.assert_array_equal(mixed.rows, rows)
    assert mixed.cached_rows == 4
    assert mixed.total_tokens == 12


async def test_a_provider_bills_no_hit() -> None:
    """Where no token counts are told, none are made up, and the tokens are those of what was computed for the call."""
    one, embedder = cache(), ChangingEmbedder(counts=False)
    first = await ask(one, embedder, "aa", "b")
    again = await ask(one, embedder, "aa", "b")
    mixed = await ask(one, embedder, "aa", "cccc")
    assert [part.token_counts for part in (first, again, mixed)] == [None] * 3
    assert [part.total_tokens for part in (first, again, mixed)] == [3, 0, 4]


async def test_a_text_at_fault_is_named_by_the_callers_own_rows_and_not_kept() -> None:
    """Beside known texts and twice in a call, each row at fault is named; what is good is embedded without it."""
    one, embedder = cache(), ChangingEmbedder()
    await ask(one, embedder, "good")
    for _ in range(2):
        failed = await ask(one, embedder, "good", "!!!", "new", "!!!")
        assert set(failed.row_errors) == {1, 3}
        assert failed.row_errors[1].at("texts", 1) is not failed.row_errors[3]
    assert (await ask(one, embedder, "good", "new")).cached_rows == 1


@pytest.mark.parametrize(
    ("changes", "models"),
    [({"max_bytes": 0}, {}), ({"static_models": False}, {"backend": "static"})],
)
async def test_off_is_off(changes: dict[str, Any], models: dict[str, Any]) -> None:
    """Without bytes nothing is kept, and static models do without where they are told to."""
    one, embedder = cache(**changes), ChangingEmbedder(replace(CARD, **models))
    assert not one.is_used_by(embedder.card)
    for _ in range(2):
        assert (await ask(one, embedder, "a", "a")).cached_rows == 0
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
def test_what_a_row_depends_on_is_in_its_key(other: Any) -> None:
    """The key of a text depends on space, runtime, input type and truncation."""
    assert not set(cache_keys(["a", "b"], *other)) & set(cache_keys(["a", "b"], CARD, InputType.QUERY, Truncation.END))


def test_roles_without_effect_share_a_key() -> None:
    """A model without roles has one key a text for all input types; different texts have different keys."""
    keys = {
        key for input_type in InputType for key in cache_keys(["a", "b", "", "a\0b"], CARD, input_type, Truncation.END)
    }
    assert len(keys) == 4


def entry(size: int = 1024) -> Any:
    return bytes(size), 5, False


def test_what_was_used_longest_ago_goes_first() -> None:
    """Beyond its bytes, memory lets go of what nobody asked for the longest, and of nothing before."""
    memory = MemoryCache(3 * (1024 + ENTRY_BYTES))
    memory.put({b"a": entry(), b"b": entry(), b"c": entry()})
    memory.find([b"a"])
    memory.put({b"d": entry()})
    assert [found is not None for found in memory.find([b"a", b"b", b"c", b"d"])] == [True, False, True, True]
    assert memory.size_bytes == 3 * (1024 + ENTRY_BYTES)


def test_a_row_larger_than_all_room_drives_nothing_out() -> None:
    """What could never be kept is not kept, and costs nobody else a place."""
    memory = MemoryCache(2048)
    memory.put({b"a": entry()})
    memory.put({b"b": entry(4096)})
    assert [found is not None for found in memory.find([b"a", b"b"])] == [True, False]


@pytest.mark.parametrize("width", [3, 256, 1024])
def test_the_bound_counts_what_is_really_taken(width: int) -> None:
    """With tables and keys, all that memory holds stays within its bytes, and uses most of them."""
    max_bytes = 4 << 20
    tracemalloc.start()
    memory = MemoryCache(max_bytes)
    before, _ = tracemalloc.get_traced_memory()
    for number in range(4 * max_bytes // (4 * width + ENTRY_BYTES)):
        memory.put({number.to_bytes(32, "big"): (bytes(4 * width), 1000 + number, False)})
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(memory) == max_bytes // (4 * width + ENTRY_BYTES)
    assert 0.5 * max_bytes < taken <= max_bytes


def test_the_first_row_of_a_key_stays() -> None:
    """A second computation of a text does not change what is kept."""
    memory = MemoryCache(ROOM)
    memory.put({b"a": (b"one.", 1, False)})
    memory.put({b"a": (b"two.", 1, False)})
    assert memory.find([b"a"]) == [(b"one.", 1, False)]


async def test_a_row_that_is_not_all_there_is_not_kept() -> None:
    """An embedder that gives too few rows fails the call, and the next call asks it again."""

    class Short(ChangingEmbedder):
        async def embed(self, *arguments: Any, **options: Any) -> Embedded:
            whole = await super().embed(*arguments, **options)
            return replace(whole, rows=whole.rows[1:]) if len(self.calls) == 1 else whole

    one, embedder = cache(), Short()
    with pytest.raises((ValueError, IndexError)):
        await ask(one, embedder, "a", "b")
    assert (await ask(one, embedder, "a", "b")).cached_rows == 0


async def test_keeping_rows_keeps_nothing_else_alive() -> None:
    """What is kept of a call does not hold the call's whole matrix in memory."""
    one, embedder = cache(), ChangingEmbedder()
    given = await ask(one, embedder, "a", "b")
    given.rows[:] = 0
    assert (await ask(one, embedder, "a", "b")).rows.all()
