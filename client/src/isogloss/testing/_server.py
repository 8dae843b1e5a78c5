"""The fake server under way: its port, its start and stop, and what a test may do to it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import grpc

from isogloss.errors import error_class
from isogloss.testing._script import Gate, Received, Script
from isogloss.testing._service import Service
from isogloss.testing._settings import Settings
from isogloss.v1.embedding_pb2_grpc import add_EmbeddingServiceServicer_to_server

HOST = "127.0.0.1"
CALLS_AT_ONCE = 256  # threads are made as they are needed
OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server would bind a taken port without a word
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


@dataclass(kw_only=True, eq=False)
class FakeServer(Settings):
    """An Isogloss server in this process, with repeatable vectors and scripted faults; see isogloss.testing.

    Use it as a context manager, or call `start` and `stop`. Any number may run at once.

    Attributes:
        requests: Every request as it arrived, in order: a list that a test may read and clear.
    """

    requests: list[Received] = field(default_factory=list, init=False, repr=False)
    _port: int = field(default=0, init=False, repr=False)
    _running: tuple[grpc.Server, ThreadPoolExecutor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._script = Script(self.requests)
        self._service = Service(self, self._script)

    @property
    def target(self) -> str:
        """Where the server listens: what to give to a Client. It stays the same when the server starts again.

        Raises:
            RuntimeError: The server has never been started.
        """
        if not self._port:
            raise RuntimeError("the server has no address before its start: with FakeServer() as server: ...")
        return f"{HOST}:{self._port}"

    def start(self) -> None:
        """Begins to listen: on a free port, or from the second time on, on the same. Does nothing where it runs."""
        if self._running is not None:
            return
        threads = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="isogloss-fake-server")
        server = grpc.server(threads, options=OPTIONS)
        add_EmbeddingServiceServicer_to_server(self._service, server)
        self._port = server.add_insecure_port(f"{HOST}:{self._port}")
        server.start()
        self._running = server, threads

    def stop(self) -> None:
        """Drops every connection and call, as a server that is killed does. Does nothing where none runs."""
        if self._running is None:
            return
        server, threads = self._running
        self._running = None
        server.stop(None).wait()
        threads.shutdown()

    def drop_connections(self) -> None:
        """Ends every call with UNAVAILABLE and every connection; the next ones are taken at once."""
        self.stop()
        self.start()

    def fail_next(
        self,
        method: str,
        *,
        code: str = "UNAVAILABLE",
        reason: str = "OVERLOADED",
        message: str = "a scripted fault",
        retry_after_s: float | None = None,
        retryable: bool | None = None,
        times: int = 1,
    ) -> None:
        """Makes the next calls of a method fail, after those that were told to before.

        A client of isogloss tries again by itself, up to ClientOptions.attempts times in all, what is UNAVAILABLE or
        RESOURCE_EXHAUSTED: with `times` below that the program under test sees no failure, only that it took longer.

        Args:
            method: "Embed" (a message of an EmbedStream counts too, and then fails alone), "EmbedStream" (ends the
                stream instead of reading its next message), "Similarity", "Health" or "ListModels".
            code: The gRPC status.
            reason: The ErrorInfo's reason; empty = an error without details, as of a proxy.
            message: The sentence for people.
            retry_after_s: Seconds that the caller is asked to wait.
            retryable: False tells the caller that trying again is pointless; None = as is usual for the code.
            times: How many calls fail.

        Raises:
            ValueError: There is no such method or code.
        """
        if code not in grpc.StatusCode.__members__ or code == "OK":
            raise ValueError(f"a code is the name of a gRPC status that is an error, not {code!r}")
        kind = error_class(code, reason)
        fault = kind(message, code=code, reason=reason, retry_after_s=retry_after_s, retryable=retryable)
        self._script.plan(method, fault, times)

    def hold(self, method: str) -> Gate:
        """Returns a gate that holds calls of a method, as of `fail_next`, until it is opened.

        with server.hold("Embed") as gate:
            future = executor.submit(program)
            gate.wait_until_held()
            ...  # what happens while the call is under way
        future.result()

        Raises:
            ValueError: There is no such method.
        """
        return self._script.hold(method)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
