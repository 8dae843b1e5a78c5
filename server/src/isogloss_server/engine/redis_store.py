"""The stores of the shared cache and of the shared quotas on Redis; no other module imports redis-py."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions
from redis._parsers import _AsyncRESP2Parser
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from isogloss_server.engine.shared_cache import CONNECT_TIMEOUT_S, StoreError
from isogloss_server.errors import SettingsError
from isogloss_server.security.quotas import MINUTE_S, Amounts, QuotaStoreError

CONNECTIONS = 8  # of one server; further look-ups wait for a connection, within their time limit
MAX_REPLY_BYTES = 32 * 1024**2  # of one reply: a look-up of 256 rows with 32,768 columns
INVALID_VALUE = b""  # stands for an element of a reply that is not a value: it decodes to no entry
INVALID_REPLY = "invalid reply of Redis"
# Exceptions of redis-py and their causes in words; the first match counts. Their own messages may quote addresses.
CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "Redis rejected the password"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "Redis rejected the password"),
    (exceptions.AuthorizationError, "Redis denied access"),
    (exceptions.BusyLoadingError, "Redis is loading its data"),
    (exceptions.MaxConnectionsError, "all connections are in use"),
    (exceptions.ConnectionError, "no connection to Redis"),
    (exceptions.TimeoutError, "no response within the time limit"),
    (exceptions.NoPermissionError, "the Redis user lacks a permission"),
    (exceptions.OutOfMemoryError, "Redis is out of memory"),
    (exceptions.ReadOnlyError, "Redis is a read-only replica"),
    (exceptions.MasterDownError, "the Redis replica has lost its master"),
    (exceptions.AskError, "Redis Cluster is not supported"),
    (exceptions.ClusterError, "Redis Cluster is not supported"),
    (exceptions.InvalidResponse, INVALID_REPLY),
    (exceptions.ResponseError, "Redis reported an error"),
)


class BoundedParser(_AsyncRESP2Parser):
    """Parser of RESP 2 that reads a reply as it arrives, and rejects one that is too large or nested too deeply.

    hiredis, redis-py's default, is not used: it allocates as many elements as a reply announces before they have
    arrived, which blocks the event loop for 2 to 25 seconds if it announces a thousand million. It would save 0.6 ms
    of 1.2 ms for 256 rows of 384 columns.
    """

    _bytes_left = MAX_REPLY_BYTES

    async def read_response(self, disable_decoding: bool = False) -> Any:  # noqa: FBT001, FBT002 - redis-py's signature
        """Reads one reply; see redis-py."""
        self._bytes_left = MAX_REPLY_BYTES
        try:
            return await super().read_response(disable_decoding)
        except (ValueError, RecursionError):  # a length that is not a number, a line without end, deep nesting
            raise exceptions.InvalidResponse(INVALID_REPLY) from None

    async def _read(self, length: int) -> bytes:
        self._take(length)
        return await super()._read(length)

    async def _readline(self) -> bytes:
        line = await super()._readline()
        self._take(len(line) + 2)
        return line

    def _take(self, size: int) -> None:
        self._bytes_left -= size
        if size < 0 or self._bytes_left < 0:
            raise exceptions.InvalidResponse(INVALID_REPLY)


def _pool(url: str) -> BlockingConnectionPool:
    """Returns connections to a URL, none of them open yet; raises SettingsError if it is invalid."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "unix" and not (parts.hostname and re.fullmatch(r"(/[0-9]*)?", parts.path)):
            raise ValueError  # noqa: TRY301 - redis-py would use this machine, or another database
        # No retries: a look-up has no time for a second attempt. RESP 2: nothing of RESP 3 is needed.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            protocol=2,
            parser_class=BoundedParser,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        # Checks the options in the URL; connects to nothing.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, exceptions.RedisError):  # its message quotes the URL, and with it the password
        form = "redis://[:PASSWORD@]HOST[:PORT][/DB] or rediss://..., with options that redis-py has"
        raise SettingsError(f"invalid URL in cache_redis_url: it must be {form}") from None
    return pool


class RedisStore:
    """Values in one Redis server, under keys with a prefix, with a lifetime."""

    def __init__(self, url: str, *, prefix: str, ttl_s: int) -> None:
        """Creates a store that connects on first use.

        Args:
            url: redis://[:PASSWORD@]HOST[:PORT][/DB] or rediss://...
            prefix: Start of each key; the hexadecimal digits of the cache's key follow.
            ttl_s: Lifetime of a value, in seconds.

        Raises:
            SettingsError: The URL is invalid.
        """
        self._pool = pool = _pool(url)
        self._redis = Redis(connection_pool=pool)
        self._prefix = prefix
        self._ttl_s = ttl_s

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Returns the value of each key, None for a missing one, in one round trip; raises StoreError.

        A proxy in front of Redis may answer some keys with an error. Such an element is INVALID_VALUE.
        """
        try:
            values: Any = await self._redis.mget([self._name(key) for key in keys])
        except Exception as error:  # noqa: BLE001 - redis-py raises more than its own exceptions on malformed replies
            raise StoreError(_cause(error)) from None
        if not isinstance(values, list) or len(values) != len(keys):
            raise StoreError(INVALID_REPLY)
        valid = [value is None or isinstance(value, bytes) for value in values]
        if not any(valid):
            raise StoreError(_cause(values[0]))
        return [value if is_valid else INVALID_VALUE for value, is_valid in zip(values, valid, strict=True)]

    async def set(self, values: Mapping[bytes, bytes]) -> Sequence[str]:
        """Stores values in one round trip; returns the cause for each rejected value; raises StoreError."""
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(self._name(key), value, ex=self._ttl_s)
        try:
            replies = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - as above
            raise StoreError(_cause(error)) from None
        return [_cause(reply) for reply in replies if reply is not True]

    async def ping(self) -> None:
        """Returns when Redis has responded; raises StoreError."""
        try:
            is_pong = await self._redis.ping()
        except Exception as error:  # noqa: BLE001 - as above
            raise StoreError(_cause(error)) from None
        if is_pong is not True:
            raise StoreError(INVALID_REPLY)

    async def close(self) -> None:
        """Closes all connections; raises StoreError."""
        try:
            await self._redis.aclose()
            await self._pool.aclose()
        except Exception as error:  # noqa: BLE001 - as above
            raise StoreError(_cause(error)) from None

    def _name(self, key: bytes) -> str:
        return f"{self._prefix}{key.hex()}"


# `Buckets.take` of security/quotas.py for the buckets of one caller, by Redis' own clock in milliseconds. ARGV: 1 to
# take always, then limit and amount of the texts, and of the tokens. Returns 0 if taken, else the milliseconds to wait.
TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'at', 'texts', 'tokens')
local elapsed = math.max(0, now - (tonumber(held[1]) or now))
local levels, wait, lifetime = {}, 0, 0
for i = 1, 2 do
  local limit, amount = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  if limit > 0 then
    local level = math.min(limit, (tonumber(held[i + 1]) or limit) + limit * elapsed / MINUTE)
    wait = math.max(wait, (math.min(amount, limit) - level) * MINUTE / limit)
    levels[i] = level - amount
    lifetime = math.max(lifetime, (limit - levels[i]) * MINUTE / limit)
  end
end
if wait > 0 and ARGV[1] == '0' then
  return math.ceil(wait)
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now))
for i, field in ipairs({'texts', 'tokens'}) do
  if levels[i] then
    redis.call('HSET', KEYS[1], field, string.format('%.6f', levels[i]))
  end
end
redis.call('PEXPIRE', KEYS[1], math.ceil(lifetime) + 1000)
return 0
""".replace("MINUTE", f"{MINUTE_S * 1e3:.0f}")


class RedisQuotaStore:
    """The token buckets of all callers in one Redis server. A script takes from them, so that no two servers race."""

    def __init__(self, url: str, *, prefix: str) -> None:
        """Creates a store that connects on first use.

        Args:
            url: As of RedisStore.
            prefix: Start of each key; "quota:" and the name of the caller follow.

        Raises:
            SettingsError: The URL is invalid.
        """
        self._pool = _pool(url)
        self._redis = Redis(connection_pool=self._pool)
        self._take = self._redis.register_script(TAKE)
        self._prefix = prefix

    async def take(self, name: str, limits: Amounts, amounts: Amounts, *, always: bool) -> float:
        """Takes amounts from the buckets of a caller; see `Buckets.take`; raises QuotaStoreError."""
        (texts, tokens), (text_limit, token_limit) = amounts, limits
        arguments = [int(always), text_limit, texts, token_limit, tokens]
        try:
            reply: Any = await self._take(keys=[f"{self._prefix}quota:{name}"], args=arguments)
        except Exception as error:  # noqa: BLE001 - as above
            raise QuotaStoreError(_cause(error)) from None
        if not isinstance(reply, int) or reply < 0:
            raise QuotaStoreError(INVALID_REPLY)
        return reply / 1e3

    async def ping(self) -> None:
        """Returns when Redis has responded; raises QuotaStoreError."""
        try:
            is_pong: Any = await self._redis.ping()
        except Exception as error:  # noqa: BLE001 - as above
            raise QuotaStoreError(_cause(error)) from None
        if is_pong is not True:
            raise QuotaStoreError(INVALID_REPLY)

    async def close(self) -> None:
        """Closes all connections; raises QuotaStoreError."""
        try:
            await self._redis.aclose()
            await self._pool.aclose()
        except Exception as error:  # noqa: BLE001 - as above
            raise QuotaStoreError(_cause(error)) from None


def _cause(reply: object) -> str:
    """Returns the cause of an error or of an unexpected reply, without its own words, which may quote an address."""
    if not isinstance(reply, Exception):
        return INVALID_REPLY
    return next((cause for kind, cause in CAUSES if isinstance(reply, kind)), f"unexpected {type(reply).__name__}")
