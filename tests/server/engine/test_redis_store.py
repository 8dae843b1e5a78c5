"""The Redis store, with redis-py, against a server that answers anything."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from isogloss_server.engine import redis_store
from isogloss_server.engine.redis_store import INVALID_REPLY, INVALID_VALUE, RedisStore
from isogloss_server.engine.shared_cache import StoreError

from tests.support.lying_redis import LyingRedis, array, bulk, honest, lying_redis

KEYS = (b"one", b"two")
NIL, ERROR = b"$-1\r\n", b"-ERR no upstream host\r\n"
ANNOUNCED = 999_999_999  # elements, of which none arrives
TIMEOUT_S = 0.05  # of an operation whose reply never ends


def of_kind(kind: bytes, size: int = 1) -> st.SearchStrategy[bytes]:
    """Returns replies of a RESP type whose elements are replies: arrays, sets, maps, pushes, attributes."""
    return st.lists(replies(), max_size=3).map(
        lambda elements: b"%b%d\r\n%b" % (kind, len(elements), b"".join(elements * size))
    )


@st.deferred
def nested() -> st.SearchStrategy[bytes]:
    """Replies that hold other replies."""
    return st.one_of(*map(of_kind, (b"*", b"~", b">")), of_kind(b"%", 2), of_kind(b"|", 2))


def replies() -> st.SearchStrategy[bytes]:
    """Returns replies of all types of RESP 2 and RESP 3, right and wrong ones, and plain bytes."""
    scalars = (b":5\r\n", b":" + b"9" * 5000 + b"\r\n", b"+OK\r\n", b"+\xff\r\n", NIL, ERROR, b"-\xff\xfe\r\n")
    resp3 = (b"_\r\n", b"#t\r\n", b",nan\r\n", b"(123456789012345678901\r\n", b"=7\r\ntxt:abc\r\n", b"!5\r\nERR x\r\n")
    errors = (b"-MOVED 1 host:2\r\n", b"-LOADING x\r\n", b"-NOAUTH x\r\n", b"-ERR max number of clients reached\r\n")
    wrong = (b"$-7\r\n", b"$x\r\n", b"*-1\r\n", b"*-9\r\n", b"$9999999999\r\n", b"*%d\r\n" % ANNOUNCED, b"\r\n")
    return st.one_of(
        st.sampled_from(scalars + resp3 + errors + wrong),
        st.binary(max_size=40).map(bulk),
        st.binary(max_size=40),
        nested,
    )


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[LyingRedis, RedisStore]]:
    """Yields a server and a store that uses it."""
    async with lying_redis() as redis:
        store = RedisStore(redis.url, prefix="p:", ttl_s=60)
        try:
            yield redis, store
        finally:
            await store.close()


async def outcome_of_each(store: RedisStore) -> None:
    """Makes each operation, which must return what it promises, raise StoreError, or take too long."""
    for operation in (store.get(KEYS), store.set(dict.fromkeys(KEYS, b"value")), store.ping()):
        try:
            async with asyncio.timeout(TIMEOUT_S):
                result = await operation
        except (StoreError, TimeoutError):
            continue
        if operation.__name__ == "get":
            assert isinstance(result, list)
            assert len(result) == len(KEYS)
            assert all(value is None or type(value) is bytes for value in result)
        elif operation.__name__ == "set":
            assert isinstance(result, list)
            assert len(result) <= len(KEYS)
            assert all(isinstance(cause, str) for cause in result)


@settings(max_examples=150)
@given(replies(), st.sampled_from(["MGET", "SET", "PING", "AUTH", "SELECT", "CLIENT", ""]))
@example(b"", "MGET")  # no reply at all
@example(b">%d\r\n" % ANNOUNCED, "MGET")
@example(b"*1\r\n" * 3000, "MGET")
def test_any_reply_to_any_command_is_a_result_or_a_store_error(reply: bytes, command: str) -> None:
    """No bytes raise another error, and the store works again when Redis does."""

    async def run() -> None:
        async with connected() as (redis, store):
            redis.reply = lambda words: (
                reply if words[0].decode() in {command, command or words[0].decode()} else honest(words)
            )
            await outcome_of_each(store)
            redis.reply = honest
            for _ in range(2):  # a connection with an unread reply is replaced
                try:
                    values = await store.get(KEYS)
                except StoreError:
                    continue
                if values == [None, None]:
                    return
            assert await store.get(KEYS) == [None, None]

    asyncio.run(run())


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(array(NIL), id="too few"),
        pytest.param(array(NIL, NIL, NIL), id="too many"),
        pytest.param(b":7\r\n", id="an integer"),
        pytest.param(b"+QUEUED\r\n", id="a word"),
        pytest.param(bulk(b"ab"), id="bytes of as many characters as keys"),
        pytest.param(b"%1\r\n+a\r\n+b\r\n", id="a map"),
        pytest.param(array(b":1\r\n", b":2\r\n"), id="integers"),
        pytest.param(array(array(NIL), array(NIL)), id="nested arrays"),
        pytest.param(b"*-1\r\n", id="no array"),
    ],
)
async def test_a_reply_without_values_is_an_error_of_the_store(reply: bytes) -> None:
    """A reply to a look-up that is not one value for each key is a StoreError."""
    async with connected() as (redis, store):
        redis.reply = lambda command: reply if command[0] == b"MGET" else honest(command)
        with pytest.raises(StoreError, match=INVALID_REPLY):
            await store.get(KEYS)


async def test_good_values_beside_an_error_are_used() -> None:
    """If a proxy answers some keys with an error, the other values are returned; errors alone are a StoreError."""
    async with connected() as (redis, store):
        redis.reply = lambda command: array(ERROR, bulk(b"good")) if command[0] == b"MGET" else honest(command)
        assert await store.get(KEYS) == [INVALID_VALUE, b"good"]
        redis.reply = lambda command: array(ERROR, ERROR) if command[0] == b"MGET" else honest(command)
        with pytest.raises(StoreError, match="Redis reported an error"):
            await store.get(KEYS)


@pytest.mark.parametrize("reply", [b":1\r\n", NIL, b"+QUEUED\r\n", ERROR, array(b"+OK\r\n"), bulk(b"no")])
async def test_a_write_that_is_not_confirmed_is_rejected(reply: bytes) -> None:
    """Each SET without the reply OK counts as rejected."""

    def answer(command: Sequence[bytes]) -> bytes:
        return reply if command[0] == b"SET" and command[1].endswith(KEYS[0].hex().encode()) else honest(command)

    async with connected() as (redis, store):
        redis.reply = answer
        assert len(await store.set(dict.fromkeys(KEYS, b"value"))) == 1


async def test_a_ping_without_its_reply_fails() -> None:
    """A server that answers PING with something else is not available."""
    async with connected() as (redis, store):
        redis.reply = lambda command: b"+OK\r\n"
        with pytest.raises(StoreError, match=INVALID_REPLY):
            await store.ping()


@pytest.mark.parametrize(
    "reply", [array(bulk(b"x" * 101)), array(b":1\r\n", b":1\r\n") * 10, b"*%d\r\n" % ANNOUNCED + NIL * 30]
)
async def test_a_reply_has_a_limit_of_bytes(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply over the limit is rejected when its size is known, and not kept."""
    monkeypatch.setattr(redis_store, "MAX_REPLY_BYTES", 100)
    async with connected() as (redis, store):
        redis.reply = lambda command: reply if command[0] == b"MGET" else honest(command)
        with pytest.raises(StoreError, match=INVALID_REPLY):
            await store.get(KEYS)


async def test_announced_elements_are_not_allocated() -> None:
    """An array is read element by element: its announced length alone reserves nothing."""
    async with connected() as (redis, store):
        redis.reply = lambda command: b"*%d\r\n" % ANNOUNCED if command[0] == b"MGET" else honest(command)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                await store.get(KEYS)
        connection = store._pool.make_connection()
        assert type(connection._parser) is redis_store.BoundedParser
