"""A TCP server that reads Redis commands and answers each with the bytes that a test chooses."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

Reply = Callable[[Sequence[bytes]], bytes]  # the words of a command -> the bytes of its reply


def array(*elements: bytes) -> bytes:
    """Returns an array of encoded elements."""
    return b"*%d\r\n%b" % (len(elements), b"".join(elements))


def bulk(value: bytes) -> bytes:
    """Returns an encoded string of bytes."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def honest(command: Sequence[bytes]) -> bytes:
    """Returns the reply of an empty Redis that stores nothing."""
    name = command[0].upper()
    if name == b"MGET":
        return array(*[b"$-1\r\n"] * (len(command) - 1))
    return b"+PONG\r\n" if name == b"PING" else b"+OK\r\n"


class LyingRedis:
    """Answers with `reply`, which a test may replace at any time."""

    def __init__(self) -> None:
        self.reply: Reply = honest
        self.port = 0

    @property
    def url(self) -> str:
        """URL with a user, a password and a database, so that the set-up of a connection has AUTH and SELECT."""
        return f"redis://user:password@127.0.0.1:{self.port}/1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the commands of one connection until its other end closes it."""
        try:
            while line := await reader.readline():
                command = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    command.append((await reader.readexactly(size + 2))[:-2])
                writer.write(self.reply(command))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client closed the connection
        finally:
            writer.close()


@asynccontextmanager
async def lying_redis() -> AsyncIterator[LyingRedis]:
    """Yields a server on a free port."""
    redis = LyingRedis()
    server = await asyncio.start_server(redis.serve, "127.0.0.1", 0)
    redis.port = server.sockets[0].getsockname()[1]
    try:
        yield redis
    finally:
        server.close()
        await server.wait_closed()
