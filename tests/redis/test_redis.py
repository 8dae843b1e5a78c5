"""Two real servers with a real Redis, which is killed, slowed, filled and damaged."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.engine.shared_cache import encode_entry

from tests.support.cached_server import CachedServer, serving
from tests.support.lying_redis import LyingRedis, array, bulk, honest, lying_redis
from tests.support.redis_server import Proxy, RedisServer, until

pytestmark = pytest.mark.redis

TEXTS = [f"an unusual sentence, number {number}" for number in range(40)]
SLOW_MS = "50"
PASSWORD = "swordfish"


def filled(server: CachedServer, redis: RedisServer) -> pb.EmbedResponse:
    """Embeds TEXTS, and returns the response when Redis has all of them."""
    until(lambda: not server.is_degraded())
    answer = server.embed(TEXTS)
    until(lambda: len(redis.values()) >= len(TEXTS))
    return answer


def all_hits(server: CachedServer) -> bool:
    """Returns True if a server finds all TEXTS in Redis."""
    return server.embed(TEXTS).timings.cached_rows == len(TEXTS)


def test_servers_share_vectors(redis: RedisServer) -> None:
    """A vector of one server is returned by the other, bit for bit; keys are digests with prefix and lifetime."""
    with serving(redis.url, "--cache-redis-ttl-s", "1000", "--cache-redis-prefix", "mine:") as one:
        first = filled(one, redis)
        with serving(redis.url, "--cache-redis-ttl-s", "1000", "--cache-redis-prefix", "mine:") as two:
            until(lambda: all_hits(two))
            again = two.embed([*reversed(TEXTS), "new"])
    assert again.timings.cached_rows == len(TEXTS)
    size = len(first.embeddings.data) // len(TEXTS)
    rows = [first.embeddings.data[at : at + size] for at in range(0, len(first.embeddings.data), size)]
    assert again.embeddings.data[: len(first.embeddings.data)] == b"".join(reversed(rows))
    assert list(again.token_counts)[: len(TEXTS)] == list(first.token_counts)[::-1]
    held = redis.values()
    assert all(name.startswith(b"mine:") for name in held)
    assert all(0 < redis.client.ttl(name) <= 1000 for name in held)
    everything = b"".join([*held, *held.values()])
    assert b"sentence" not in everything
    assert b"number" not in everything


def test_killed_and_restarted_under_load(redis: RedisServer) -> None:
    """While Redis is killed and restarted every call succeeds, health reports it, and hits resume."""
    with serving(redis.url) as server, ThreadPoolExecutor(4) as pool:
        right = filled(server, redis).embeddings.data
        ending = False

        def load() -> int:
            calls = 0
            while not ending:
                assert server.embed(TEXTS).embeddings.data == right
                calls += 1
            return calls

        loads = [pool.submit(load) for _ in range(4)]
        try:
            for _ in range(2):
                redis.kill()
                until(server.is_degraded)
                redis.start()
                until(lambda: not server.is_degraded())
                until(lambda: all_hits(server))
        finally:
            ending = True
        assert all(loaded.result() for loaded in loads)


@pytest.mark.parametrize("process", [False, True])
def test_slow(redis: RedisServer, *, process: bool) -> None:
    """While the network or Redis hangs, calls succeed without it; afterwards they use it again."""
    with Proxy(redis.port) as proxy, serving(proxy.url, timeout_ms=SLOW_MS) as server:
        right = filled(server, redis).embeddings.data
        hanging = redis if process else proxy
        hanging.hang(on=True)
        answers = [server.embed(TEXTS) for _ in range(6)]
        assert [answer.embeddings.data == right for answer in answers] == [True] * 6
        assert server.is_degraded()
        hanging.hang(on=False)
        until(lambda: not server.is_degraded())
        until(lambda: all_hits(server))


def test_full(redis: RedisServer) -> None:
    """A full Redis still returns its rows; rejected rows are counted, logged once, and computed each time."""
    with serving(redis.url) as server:
        filled(server, redis)
        redis.client.config_set("maxmemory-policy", "noeviction")
        redis.client.config_set("maxmemory", "1")
        for _ in range(3):
            assert server.embed(["something new"]).timings.cached_rows == 0
        until(lambda: server.metric('isogloss_cache_shared_errors_total{operation="set"}') >= 3)
        assert all_hits(server)
        assert not server.is_degraded()
        redis.client.config_set("maxmemory", "0")
        until(lambda: server.embed(["something new"]).timings.cached_rows == 1)
    assert sum("writing to the shared cache failed" in line for line in server.process.lines) == 1


def test_a_read_only_replica(redis: RedisServer) -> None:
    """A read-only replica returns its rows, and calls succeed although it stores nothing."""
    with serving(redis.url) as server:
        right = filled(server, redis).embeddings.data
    with RedisServer("--replicaof", "127.0.0.1", str(redis.port)) as replica:
        until(lambda: len(replica.values()) >= len(TEXTS))
        with serving(replica.url) as server:
            until(lambda: all_hits(server))
            assert server.embed(TEXTS).embeddings.data == right
            server.embed(["something new"])
            until(lambda: server.metric('isogloss_cache_shared_errors_total{operation="set"}') >= 1)
            assert not server.is_degraded()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda value: b"", id="empty"),
        pytest.param(lambda value: os.urandom(len(value)), id="garbage"),
        pytest.param(lambda value: value[:1] + b"\x63" + value[2:], id="another version's"),
        pytest.param(lambda value: value[:-1], id="cut"),
        pytest.param(lambda value: value[:-1] + bytes([value[-1] ^ 1]), id="one bit"),
    ],
)
def test_damaged_values(redis: RedisServer, damage: Callable[[bytes], bytes]) -> None:
    """Values that fail verification are ignored, counted and written again."""
    with serving(redis.url) as server:
        right = filled(server, redis).embeddings.data
        redis.client.mset({name: damage(value) for name, value in redis.values().items()})
        answer = server.embed(TEXTS)
        assert (answer.timings.cached_rows, answer.embeddings.data == right) == (0, True)
        assert server.metric('isogloss_cache_rows_total{level="shared",model="isogloss-static",outcome="bad"}') == len(
            TEXTS
        )
        until(lambda: all_hits(server))


@pytest.mark.parametrize("row", [np.nan, np.inf])
def test_forged_values(redis: RedisServer, row: float) -> None:
    """Rows that are not finite are not served, although their checksum is right."""
    with serving(redis.url) as server:
        right = filled(server, redis).embeddings.data
        for name, value in redis.values().items():
            key = bytes.fromhex(name.decode().rpartition(":")[2])
            size = len(value) - len(encode_entry(key, (b"", 1, False)))
            forged = encode_entry(key, (np.full(size // 4, row, "<f4").tobytes(), 1, False))
            assert len(forged) == len(value)
            redis.client.set(name, forged)
        assert server.embed(TEXTS).embeddings.data == right
        assert server.metric('isogloss_cache_rows_total{level="shared",model="isogloss-static",outcome="bad"}') == len(
            TEXTS
        )
        until(lambda: all_hits(server))


async def test_a_lying_redis() -> None:
    """Calls succeed whatever a server answers to look-ups, and use it again when it answers as Redis does."""
    async with lying_redis() as redis:
        await asyncio.to_thread(call_beside_lies, redis)


def call_beside_lies(redis: LyingRedis) -> None:
    """Makes calls of a server while Redis gives each wrong answer to its look-ups."""
    elements = len(TEXTS)
    with serving(redis.url, timeout_ms=SLOW_MS) as server:
        until(lambda: not server.is_degraded())
        right = server.embed(TEXTS).embeddings.data
        for answer in (
            b"*1\r\n$-1\r\n",
            b":5\r\n",
            b"%1\r\n+a\r\n+b\r\n",
            b"*999999999\r\n",
            b">999999999\r\n",
            b"*1\r\n" * 5000,
            array(*[b"-ERR no upstream host\r\n"] * elements),
            array(*[b":1\r\n"] * elements),
            array(*[bulk(bytes(1000))] * elements),
            bytes(range(256)),
        ):
            redis.reply = partial(lie, answer)
            assert [server.embed(TEXTS).embeddings.data == right for _ in range(4)] == [True] * 4
            redis.reply = honest
            until(lambda: not server.is_degraded())


def lie(answer: bytes, command: Sequence[bytes]) -> bytes:
    """Returns `answer` to a look-up, and the right reply to any other command."""
    return answer if command[0] == b"MGET" else honest(command)


def test_keys_of_another_type(redis: RedisServer) -> None:
    """If the keys do not hold strings, calls succeed."""
    with serving(redis.url) as server:
        right = filled(server, redis).embeddings.data
        for name in redis.values():
            redis.client.delete(name)
            redis.client.lpush(name, "not a string")
        assert server.embed(TEXTS).embeddings.data == right
        until(lambda: all_hits(server))


def test_the_password_never_leaks() -> None:
    """With the right password rows are shared; otherwise the server starts DEGRADED; the password never leaks."""
    with RedisServer(password=PASSWORD) as redis:
        with serving(redis.url, "--log-level", "debug") as server:
            filled(server, redis)
            until(lambda: all_hits(server))
        lines = list(server.process.lines)
        for wrong in (redis.url.replace(PASSWORD, f"{PASSWORD}-of-old"), f"redis://127.0.0.1:{redis.port}"):
            with serving(wrong, "--log-level", "debug") as server:
                until(server.is_degraded)
                assert server.embed(TEXTS).timings.cached_rows == 0
                assert PASSWORD not in server.health()[1]
            lines += server.process.lines
    assert lines
    assert not [line for line in lines if PASSWORD in line]


def test_no_redis() -> None:
    """Without a Redis, the server starts, reports it, and serves."""
    with RedisServer() as redis:
        redis.kill()
        with serving(redis.url) as server:
            until(server.is_degraded)
            assert server.embed(TEXTS).timings.cached_rows == 0
        redis.start()


def test_an_invalid_url_is_one_line_without_the_password() -> None:
    """An invalid URL ends the start with a line that does not quote it."""
    command = [sys.executable, "-m", "isogloss_server", "serve", "--port", "0"]
    variables = {**os.environ, "ISOGLOSS_CACHE_REDIS_URL": f"http://:{PASSWORD}@localhost"}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "redis://" in ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr
    assert len(ended.stderr.splitlines()) == 1
