"""Two real servers before a real Redis, which is killed, slowed, filled and spoilt."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from isogloss.v1 import embedding_pb2 as pb

from tests.support.cached_server import Face, serving
from tests.support.redis_server import Proxy, RedisServer, binary, until

pytestmark = pytest.mark.redis

TEXTS = [f"a sentence that nobody else has, number {number}" for number in range(40)]
SLOW_MS = "50"
PASSWORD = "swordfish"


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if binary() is None:
        missing = "there is no redis-server on PATH or under .redis; `make test-redis` installs one"
        if os.environ.get("CI") == "true" or os.environ.get("NEED_REDIS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with RedisServer() as server:
        yield server


def filled(face: Face, redis: RedisServer) -> pb.EmbedResponse:
    """Returns what a server computed of TEXTS, once Redis has all of it."""
    until(lambda: not face.is_degraded())
    answer = face.embed(TEXTS)
    until(lambda: len(redis.values()) >= len(TEXTS))
    return answer


def all_hits(face: Face) -> bool:
    """Whether a server has all TEXTS from Redis."""
    return face.embed(TEXTS).timings.cached_rows == len(TEXTS)


def test_servers_share_what_they_compute(redis: RedisServer) -> None:
    """What one computed the other answers with, bit for bit; keys are digests with a prefix and a time to live."""
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
    """While Redis dies and comes back every call is answered right, health tells, and hits come back by themselves."""
    with serving(redis.url) as face, ThreadPoolExecutor(4) as pool:
        right = filled(face, redis).embeddings.data
        ending = False

        def load() -> int:
            calls = 0
            while not ending:
                assert face.embed(TEXTS).embeddings.data == right
                calls += 1
            return calls

        loads = [pool.submit(load) for _ in range(4)]
        try:
            for _ in range(2):
                redis.kill()
                until(face.is_degraded)
                redis.start()
                until(lambda: not face.is_degraded())
                until(lambda: all_hits(face))
        finally:
            ending = True
        assert all(loaded.result() for loaded in loads)


@pytest.mark.parametrize("process", [False, True])
def test_slow(redis: RedisServer, *, process: bool) -> None:
    """While the network or Redis itself hangs calls are answered without it, and once it goes on, with it."""
    with Proxy(redis.port) as proxy, serving(proxy.url, timeout_ms=SLOW_MS) as face:
        right = filled(face, redis).embeddings.data
        hanging = redis if process else proxy
        hanging.hang(on=True)
        answers = [face.embed(TEXTS) for _ in range(6)]
        assert [answer.embeddings.data == right for answer in answers] == [True] * 6
        assert face.is_degraded()
        hanging.hang(on=False)
        until(lambda: not face.is_degraded())
        until(lambda: all_hits(face))


def test_full(redis: RedisServer) -> None:
    """A Redis without room still gives what it has; what it refuses is counted, told once, and computed each time."""
    with serving(redis.url) as face:
        filled(face, redis)
        redis.client.config_set("maxmemory-policy", "noeviction")
        redis.client.config_set("maxmemory", "1")
        for _ in range(3):
            assert face.embed(["something new"]).timings.cached_rows == 0
        until(lambda: face.counted('isogloss_cache_shared_errors_total{operation="set"}') >= 3)
        assert all_hits(face)
        assert not face.is_degraded()
        redis.client.config_set("maxmemory", "0")
        until(lambda: face.embed(["something new"]).timings.cached_rows == 1)
    assert sum("writing to the shared cache failed" in line for line in face.process.lines) == 1


def test_a_replica_that_may_not_be_written(redis: RedisServer) -> None:
    """A read-only replica gives what it has, and calls are answered although it keeps nothing."""
    with serving(redis.url) as face:
        right = filled(face, redis).embeddings.data
    with RedisServer("--replicaof", "127.0.0.1", str(redis.port)) as replica:
        until(lambda: len(replica.values()) >= len(TEXTS))
        with serving(replica.url) as face:
            until(lambda: all_hits(face))
            assert face.embed(TEXTS).embeddings.data == right
            face.embed(["something new"])
            until(lambda: face.counted('isogloss_cache_shared_errors_total{operation="set"}') >= 1)
            assert not face.is_degraded()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda value: b"", id="empty"),
        pytest.param(lambda value: os.urandom(len(value)), id="garbage"),
        pytest.param(lambda value: value[:1] + b"\x63" + value[2:], id="another version's"),
        pytest.param(lambda value: value[:-1], id="cut"),
        pytest.param(lambda value: value[:-1] + bytes([value[-1] ^ 1]), id="one bit"),
    ],
)
def test_values_that_are_not_ours(redis: RedisServer, spoil: Callable[[bytes], bytes]) -> None:
    """What does not verify is ignored, counted and written anew."""
    with serving(redis.url) as face:
        right = filled(face, redis).embeddings.data
        redis.client.mset({name: spoil(value) for name, value in redis.values().items()})
        answer = face.embed(TEXTS)
        assert (answer.timings.cached_rows, answer.embeddings.data == right) == (0, True)
        assert face.counted('isogloss_cache_rows_total{level="shared",outcome="bad"}') == len(TEXTS)
        until(lambda: all_hits(face))


def test_a_key_of_another_kind(redis: RedisServer) -> None:
    """Where our keys hold no strings at all, calls are answered."""
    with serving(redis.url) as face:
        right = filled(face, redis).embeddings.data
        for name in redis.values():
            redis.client.delete(name)
            redis.client.lpush(name, "no string")
        assert face.embed(TEXTS).embeddings.data == right
        until(lambda: all_hits(face))


def test_a_password_is_used_and_told_to_nobody() -> None:
    """With the right password rows are shared; with a wrong or no one the server starts DEGRADED; no line has one."""
    with RedisServer(password=PASSWORD) as redis:
        with serving(redis.url, "--log-level", "debug") as face:
            filled(face, redis)
            until(lambda: all_hits(face))
        told = list(face.process.lines)
        for wrong in (redis.url.replace(PASSWORD, f"{PASSWORD}-of-old"), f"redis://127.0.0.1:{redis.port}"):
            with serving(wrong, "--log-level", "debug") as face:
                until(face.is_degraded)
                assert face.embed(TEXTS).timings.cached_rows == 0
                assert PASSWORD not in face.health()[1]
            told += face.process.lines
    assert told
    assert not [line for line in told if PASSWORD in line]


def test_nothing_there() -> None:
    """Where no Redis is, the server starts, says so, and answers."""
    with RedisServer() as redis:
        redis.kill()
        with serving(redis.url) as face:
            until(face.is_degraded)
            assert face.embed(TEXTS).timings.cached_rows == 0
        redis.start()


def test_no_url_is_one_line_without_the_password() -> None:
    """What is no URL of Redis ends the start with a line that does not quote it."""
    command = [sys.executable, "-m", "isogloss_server", "serve", "--port", "0"]
    variables = {**os.environ, "ISOGLOSS_CACHE_REDIS_URL": f"http://:{PASSWORD}@localhost"}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "redis://" in ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr
    assert len(ended.stderr.splitlines()) == 1
