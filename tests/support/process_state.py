"""What a server process holds: file descriptors, threads, memory, and work. Read from /proc, where there is one."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.server_process import ServerProcess

LOOKS = 5000  # each a call to the server, which so gets its time
GROWN_MB = 64  # what pools, caches and the allocator may keep of all that they were given
POOLED_THREADS = 6  # that gRPC and the server start when they are first wanted, and then keep


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at a moment."""

    descriptors: int
    threads: int
    resident_mb: float


class Observer:
    """Looks at a server through one connection of its own, which is open from the beginning."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._pid = server.process.pid
        self._channel = grpc.insecure_channel(server.address)
        self._stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)
        self.check_answers()

    def held(self) -> Held:
        """Returns what the process holds now."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self._pid}/status").read_text().splitlines())
        descriptors = sum(1 for _ in Path(f"/proc/{self._pid}/fd").iterdir())
        return Held(descriptors, int(status["Threads"]), int(status["VmRSS"].split()[0]) / 1024)

    def health(self) -> pb.ModelHealth:
        """Returns how the first model is."""
        return self._stub.Health(pb.HealthRequest(), timeout=60).models[0]

    def check_answers(self) -> None:
        """Asserts that the server answers, and rightly: the vector of a text beside another is its own."""
        request = pb.EmbedRequest(texts=["Good morning", "Buenos días"])
        both = self._stub.Embed(request, timeout=60).embeddings.data
        alone = self._stub.Embed(pb.EmbedRequest(texts=request.texts[:1]), timeout=60).embeddings.data
        assert alone
        assert both[: len(alone)] == alone

    def until(self, condition: Callable[[pb.ModelHealth], bool]) -> pb.ModelHealth:
        """Returns the model's health once something is so."""
        for _ in range(LOOKS):
            if condition(health := self.health()):
                return health
        raise AssertionError(f"it never came: {health}, {self.held()}")

    def check_freed(self, before: Held) -> None:
        """Asserts that soon nothing is held any more that was not before, memory aside; and that nothing is queued."""
        self.until(
            lambda health: (
                health.queued_texts == 0
                and self.held().descriptors <= before.descriptors
                and self.held().threads <= before.threads + POOLED_THREADS
            )
        )

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Asserts, after the block, that the server lives, answers, and holds what it held before."""
        self.check_freed(before := self.held())
        yield
        assert self._server.process.poll() is None
        self.check_answers()
        self.check_freed(before)
        assert self.held().resident_mb - before.resident_mb < GROWN_MB

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()
