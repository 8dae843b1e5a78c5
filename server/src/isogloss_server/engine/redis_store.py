"""The store that Redis is. The only module that imports redis-py."""

from collections.abc import Mapping, Sequence
from typing import cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from isogloss_server.engine.shared_cache import CONNECT_TIMEOUT_S, StoreError
from isogloss_server.errors import CacheSetupError

CONNECTIONS = 8  # of one server; look-ups beyond wait for one, within their time


class RedisStore:
    """Values in one Redis, each under a prefix and the key's digits, for as long as they live there."""

    def __init__(self, url: str, *, prefix: str, ttl_s: int) -> None:
        """Connects to nothing yet.

        Raises:
            CacheSetupError: the URL is none.
        """
        try:
            # One attempt: whoever asks has no time for a second one. RESP 2: nothing is wanted that 3 adds.
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
            )
        except ValueError:  # its message quotes the URL, and with it the password
            raise CacheSetupError("the URL of the shared cache is none: it begins with redis:// or rediss://") from None
        self._redis = Redis(connection_pool=pool)
        self._pool = pool
        self._prefix = prefix
        self._ttl_s = ttl_s

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Returns the value of each key, or None, in one round trip; raises StoreError."""
        try:
            values = await self._redis.mget([self._name(key) for key in keys])
        except Exception as error:  # noqa: BLE001 - whatever a library makes of a stranger's bytes
            raise _fault(error) from None
        return cast("list[bytes | None]", values)  # str where the client were told to decode

    async def set(self, values: Mapping[bytes, bytes]) -> Sequence[str]:
        """Keeps values in one round trip; returns why those were refused that were; raises StoreError."""
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(self._name(key), value, ex=self._ttl_s)
        try:
            answers = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - as above
            raise _fault(error) from None
        return [type(answer).__name__ for answer in answers if isinstance(answer, Exception)]

    async def ping(self) -> None:
        """Returns once Redis answers; raises StoreError."""
        try:
            await self._redis.ping()
        except Exception as error:  # noqa: BLE001 - as above
            raise _fault(error) from None

    async def close(self) -> None:
        """Closes all connections; raises StoreError."""
        try:
            await self._redis.aclose()
            await self._pool.aclose()
        except Exception as error:  # noqa: BLE001 - as above
            raise _fault(error) from None

    def _name(self, key: bytes) -> str:
        return f"{self._prefix}{key.hex()}"


def _fault(error: Exception) -> StoreError:
    """Returns the error's kind without its message and cause, which may quote an address."""
    return StoreError(type(error).__name__)
