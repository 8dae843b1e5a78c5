"""Checks that a server process frees its file descriptors, threads, memory and queues."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.server_process import ServerProcess

POLLS = 5000  # each is a call to the server, which gives it time to progress
GROWN_MB = 64  # memory that pools, caches and the allocator may keep
POOLED_THREADS = 6  # threads that gRPC and the server start on first use and then keep


@dataclass(frozen=True, slots=True)
class Held:
    """Resources of a process at one time."""

    descriptors: int
    threads: int
    resident_mb: float


class Observer:
    """Reads the resources and the health of a server, over one connection that it opens first."""

    def __init__(self, server: ServerProcess, metadata: Sequence[tuple[str, str]] = ()) -> None:
        """Takes the metadata of its calls, such as a key."""
        self._server = server
        self._metadata = tuple(metadata)
        self._process = psutil.Process(server.process.pid)
        self._channel = grpc.insecure_channel(server.address)
        self._stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)
        self.check_answers()

    def held(self) -> Held:
        """Returns the current resources of the process."""
        with self._process.oneshot():
            resident_mb = self._process.memory_info().rss / 1024**2
            return Held(self._process.num_fds(), self._process.num_threads(), resident_mb)

    def health(self) -> pb.ModelHealth:
        """Returns the health of the first model."""
        return self._stub.Health(pb.HealthRequest(), timeout=60, metadata=self._metadata).models[0]

    def check_answers(self) -> None:
        """Asserts that the server responds, with the same vector for a text alone and in a batch."""
        request = pb.EmbedRequest(texts=["Good morning", "Buenos días"])
        both = self._stub.Embed(request, timeout=60, metadata=self._metadata).embeddings.data
        single = pb.EmbedRequest(texts=request.texts[:1])
        alone = self._stub.Embed(single, timeout=60, metadata=self._metadata).embeddings.data
        assert alone
        assert both[: len(alone)] == alone

    def until(self, condition: Callable[[pb.ModelHealth], bool]) -> pb.ModelHealth:
        """Polls the health of the model until it meets a condition, and returns it."""
        for _ in range(POLLS):
            if condition(health := self.health()):
                return health
        raise AssertionError(f"condition not met: {health}, {self.held()}")

    def check_freed(self, before: Held) -> None:
        """Polls until file descriptors and threads are back at those of `before` and no text is queued."""
        self.until(
            lambda health: (
                health.queued_texts == 0
                and self.held().descriptors <= before.descriptors
                and self.held().threads <= before.threads + POOLED_THREADS
            )
        )

    @contextlib.contextmanager
    def unaffected(self) -> Iterator[None]:
        """Asserts after the block that the server runs, responds, and has freed the resources of the block."""
        self.check_freed(before := self.held())
        yield
        assert self._server.process.poll() is None
        self.check_answers()
        self.check_freed(before)
        assert self.held().resident_mb - before.resident_mb < GROWN_MB

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()
