"""Quotas that real servers share in a real Redis."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.engine.redis_store import RedisQuotaStore
from isogloss_server.security.quotas import QuotaStoreError

from tests.support.cached_server import CachedServer, serving
from tests.support.keys import add_key, bearer
from tests.support.redis_server import RedisServer, until

pytestmark = pytest.mark.redis

UNLIMITED, LIMIT = 0, 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of the keys file of all servers."""
    return tmp_path / "keys.json"


@contextmanager
def sharing(redis: RedisServer, file: Path) -> Iterator[CachedServer]:
    """Yields a server once it shares its quotas."""
    key = add_key(file, "first", texts_per_minute=1_000_000)
    with serving(redis.url, "--keys-file", str(file), "--cache-redis-prefix", "mine:") as server:
        redis.client.delete("mine:quota:first")
        until(lambda: embed(server, key, 1) == "OK" and bool(redis.client.exists("mine:quota:first")))
        yield server


def embed(server: CachedServer, key: str, texts: int) -> str:
    """Returns the code of an Embed with this number of texts."""
    try:
        server.stub.Embed(pb.EmbedRequest(texts=["a"] * texts), metadata=bearer(key), timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_servers_share_a_quota(redis: RedisServer, file: Path) -> None:
    """What one server has charged is missing at the other, and other callers are unaffected."""
    key, other = add_key(file, "search", texts_per_minute=LIMIT), add_key(file, "other", texts_per_minute=LIMIT)
    with sharing(redis, file) as one, sharing(redis, file) as two:
        assert embed(one, key, 900) == "OK"
        assert embed(two, key, 900) == "RESOURCE_EXHAUSTED"
        assert embed(two, other, 900) == "OK"
    assert 0 < redis.client.pttl("mine:quota:search") <= 61_000  # type: ignore[operator]


def test_tokens_are_charged_at_all_servers_when_they_are_known(redis: RedisServer, file: Path) -> None:
    """The correction of an estimate reaches Redis too."""
    key = add_key(file, tokens_per_minute=6000)  # returned by a tenth of a token in a millisecond
    text = " a" * 100  # a token for each word, where the estimate is one for four bytes
    with sharing(redis, file) as server:
        response = server.stub.Embed(pb.EmbedRequest(texts=[text] * 10), metadata=bearer(key), timeout=60)
        tokens = response.total_tokens

        def is_charged() -> bool:
            level = redis.client.hget("mine:quota:caller", "tokens")
            assert level is not None
            return float(level) < 6000 - 0.7 * tokens  # type: ignore[arg-type]

        until(is_charged)
    assert 0.7 * tokens > 10 * len(text) // 4


def test_without_redis_a_server_counts_alone(redis: RedisServer, file: Path) -> None:
    """While Redis is killed, no call fails that has quota; the server still refuses what exceeds it."""
    key = add_key(file, texts_per_minute=LIMIT)
    with sharing(redis, file) as server:
        redis.kill()
        assert [embed(server, key, 100) for _ in range(9)] == ["OK"] * 9
        assert embed(server, key, 900) == "RESOURCE_EXHAUSTED"
        assert server.metric("isogloss_quota_shared_errors_total") > 0
        assert any("shared quotas unavailable" in line for line in server.process.lines)
        redis.start()
        until(lambda: any("quotas are shared" in line for line in server.process.lines))
        assert embed(server, key, 1) == "OK"


async def test_takes_are_atomic(redis: RedisServer) -> None:
    """Of many takes at once, those that fit are granted, and no more; each server gets the time to wait."""
    stores = [RedisQuotaStore(redis.url, prefix="p:") for _ in range(3)]
    limits = (LIMIT, UNLIMITED)
    waits = await asyncio.gather(
        *(store.take("a", limits, (100, 5), always=False) for store in stores for _ in range(10))
    )
    assert waits.count(0.0) == 10
    assert all(0 < wait <= 6 for wait in waits if wait)
    assert await stores[0].take("a", limits, (-500, 0), always=True) == 0.0
    assert await stores[1].take("a", limits, (400, 0), always=False) == 0.0
    for store in stores:
        await store.close()


async def test_a_debt_delays_until_it_is_paid(redis: RedisServer) -> None:
    """Amounts taken always may exceed the bucket; the wait includes them, and the entry outlives the debt."""
    store = RedisQuotaStore(redis.url, prefix="p:")
    limits = (UNLIMITED, 600)
    assert await store.take("a", limits, (1, 1800), always=True) == 0.0
    assert 119 < await store.take("a", limits, (1, 1), always=False) < 121
    assert 180_000 < redis.client.pttl("p:quota:a") <= 181_000  # type: ignore[operator]
    await store.close()


async def test_a_reply_of_another_kind_is_an_error_of_the_store(redis: RedisServer) -> None:
    """A value of another type under the name fails the operation, and not the call."""
    redis.client.set("p:quota:a", "text")
    store = RedisQuotaStore(redis.url, prefix="p:")
    with pytest.raises(QuotaStoreError):
        await store.take("a", (1, 1), (1, 1), always=False)
    await store.close()
