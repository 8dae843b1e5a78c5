"""The fake server: its service and its streams."""

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from isogloss.errors import FieldViolation, InternalError, IsoglossError, error_class
from isogloss.testing._engine import RETRIED_CODES, Responder, Settings, abort, float_rows, raw_rows, refusal, to_status
from isogloss.testing._script import Gate, Received, Script
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server
from isogloss.wire.matrix import unit_length
from isogloss.wire.status import REQUEST_ID_TRAILER

WINDOW_REQUESTS = 32  # in flight on a stream; at this number the server stops reading
HOST = "127.0.0.1"
MAX_CALLS = 256  # at once; threads are created when needed
OPTIONS = (
    ("grpc.so_reuseport", 0),  # otherwise a second server binds a used port without an error
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


Answer = Callable[[], pb.EmbedResponse]


class Stream:
    """One stream. One thread reads it and another answers each message, so that a held message delays no other.

    Args:
        requests: Messages of the caller.
        context: gRPC's context of the call.
        arrive: Called with each message in order; returns the function that answers it, which runs in a thread of its
            own and whose errors answer the message. If `arrive` raises, the stream ends with the error after all
            earlier messages are answered.
    """

    def __init__(
        self,
        requests: Iterator[pb.EmbedStreamRequest],
        context: Any,
        arrive: Callable[[pb.EmbedStreamRequest], Answer],
    ) -> None:
        self._requests, self._context = requests, context
        self._arrive = arrive
        self._changed = threading.Condition()
        self._in_flight: dict[int, threading.Thread] = {}
        self._ready: SimpleQueue[pb.EmbedStreamResponse | IsoglossError | None] = SimpleQueue()

    def responses(self) -> Iterator[pb.EmbedStreamResponse]:
        """Yields the responses; raises the error that ends the stream."""
        self._context.add_callback(self._wake)
        threading.Thread(target=self._read, daemon=True).start()
        while (item := self._ready.get()) is not None:
            if isinstance(item, IsoglossError):
                raise item
            with self._changed:
                del self._in_flight[item.id]  # before the caller receives the response and may reuse the id
                self._changed.notify_all()
            yield item

    def _read(self) -> None:
        end: IsoglossError | None = None
        try:
            for request in self._requests:
                try:
                    answer = self._arrive(request)
                except IsoglossError as error:
                    end = error
                    break
                self._start(request, answer)
        except IsoglossError as error:  # an id in flight was reused: requests in flight are not answered
            self._ready.put(error)
            return
        except grpc.RpcError:  # the caller cancelled, or the server stops
            pass
        for thread in list(self._in_flight.values()):
            thread.join()
        self._ready.put(end)

    def _start(self, request: pb.EmbedStreamRequest, answer: Answer) -> None:
        thread = threading.Thread(target=self._respond, args=(request, answer), daemon=True)
        with self._changed:
            if request.id in self._in_flight:
                raise refusal("DUPLICATE_ID", "the id is still in flight", "id", id=request.id)
            self._in_flight[request.id] = thread
        thread.start()
        with self._changed:
            self._changed.wait_for(lambda: len(self._in_flight) < WINDOW_REQUESTS or not self._context.is_active())

    def _respond(self, request: pb.EmbedStreamRequest, answer: Answer) -> None:
        response = pb.EmbedStreamResponse(id=request.id)
        try:
            response.response.CopyFrom(answer())
        except IsoglossError as error:
            response.error.CopyFrom(to_status(error))
        except Exception as error:  # noqa: BLE001 - without a response the caller would wait forever
            response.error.CopyFrom(to_status(InternalError(f"the fake server failed: {error!r}", reason="INTERNAL")))
        self._ready.put(response)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


Request = TypeVar("Request")


Response = TypeVar("Response")


class Service(EmbeddingServiceServicer):
    """Implements the RPCs of the contract."""

    def __init__(self, settings: Settings, script: Script) -> None:
        self._settings = settings
        self._script = script
        self._responder = Responder()

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802 - the contract's name
        """Embeds texts."""
        return self._answer("Embed", request, context, self._responder.embed)

    def EmbedStream(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> Iterator[pb.EmbedStreamResponse]:
        """Embeds many requests on one stream. Gates and scripted errors of Embed apply to its messages as well."""
        trailers = _trailers(context)

        self._script.begin("EmbedStream", context)

        def arrive(message: pb.EmbedStreamRequest) -> Answer:
            """Records a message; raises the scripted error that ends the stream."""
            self._script.record("EmbedStream", message, context)
            self._script.next_step("EmbedStream").run(context)
            step, settings = self._script.next_step("Embed"), copy(self._settings)
            timeout_s = message.timeout.ToNanoseconds() / 1e9 if message.HasField("timeout") else None

            def answer() -> pb.EmbedResponse:
                """Embeds the texts of the message within its timeout."""
                step.run(context, timeout_s)
                return self._responder.embed(settings, message.request)

            return answer

        try:
            yield from Stream(request_iterator, context, arrive).responses()
        except IsoglossError as error:
            abort(context, error, trailers)

    def Similarity(self, request: pb.SimilarityRequest, context: Any) -> pb.SimilarityResponse:  # noqa: N802
        """Scores queries against candidates."""
        return self._answer("Similarity", request, context, self._responder.compare)

    def Health(self, request: pb.HealthRequest, context: Any) -> pb.HealthResponse:  # noqa: N802
        """Reports the status of the settings."""
        return self._answer("Health", request, context, self._responder.health)

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """Describes the model and its limits."""
        return self._answer("ListModels", request, context, self._responder.models)

    def _answer(
        self, method: str, request: Request, context: Any, answer: Callable[[Settings, Request], Response]
    ) -> Response:
        trailers = _trailers(context)
        self._script.begin(method, context)
        try:
            self._script.record(method, request, context)
            step, settings = self._script.next_step(method), copy(self._settings)
            step.run(context)
            return answer(settings, request)
        except IsoglossError as error:
            abort(context, error, trailers)


def _trailers(context: Any) -> tuple[tuple[str, str], ...]:
    """Returns the trailers of every call, and sets them for a call that succeeds."""
    given = {key: value for key, value in context.invocation_metadata()}  # noqa: C416 - grpc's own pair type
    trailers = ((REQUEST_ID_TRAILER, given.get(REQUEST_ID_TRAILER) or uuid.uuid4().hex),)
    context.set_trailing_metadata(trailers)
    return trailers


@dataclass(kw_only=True, eq=False)
class FakeServer(Settings):
    """An Isogloss server in this process, with reproducible vectors and scripted errors; see isogloss.testing.

    Use it as a context manager, or call `start` and `stop`. Several servers can run at once.

    Attributes:
        credentials: TLS credentials of the server, see grpc.ssl_server_credentials; None means no TLS.
        requests: All requests received, in order. A test may clear the list.
    """

    credentials: grpc.ServerCredentials | None = field(default=None, repr=False)
    requests: list[Received] = field(default_factory=list, init=False, repr=False)
    _port: int = field(default=0, init=False, repr=False)
    _running: tuple[grpc.Server, ThreadPoolExecutor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._script = Script(self.requests)
        self._service = Service(self, self._script)

    @property
    def target(self) -> str:
        """Address of the server, as Client takes it. It stays the same when the server is started again.

        Raises:
            RuntimeError: The server has never been started.
        """
        if not self._port:
            raise RuntimeError("the server has no address before its start: with FakeServer() as server: ...")
        return f"{HOST}:{self._port}"

    @property
    def streams(self) -> int:
        """Number of EmbedStream calls received."""
        return self._script.streams

    @property
    def on_request(self) -> Callable[[Received], None] | None:
        """Function that is called with each request before it is answered, or None.

        It runs in the thread that answers the request (of a stream: in the one that reads it). It may change the
        server's settings, block, or raise an IsoglossError, which answers the request and ends a stream.
        """
        return self._script.on_request

    @on_request.setter
    def on_request(self, function: Callable[[Received], None] | None) -> None:
        """Sets the function; None removes it."""
        self._script.on_request = function

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors that the server has for `texts` now, float32 [n, d], of unit length."""
        heads, columns = self.group_heads(), self.offered_dimensions[0]
        raw = raw_rows(texts, heads, self.space_id, columns)
        return unit_length(float_rows(raw, normalize=True))

    def start(self) -> None:
        """Starts to listen: first on a free port, later on the same port. Has no effect on a running server."""
        if self._running is not None:
            return
        threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="isogloss-fake-server")
        server = grpc.server(threads, options=OPTIONS)
        add_EmbeddingServiceServicer_to_server(self._service, server)
        address = f"{HOST}:{self._port}"
        if self.credentials is None:
            self._port = server.add_insecure_port(address)
        else:
            self._port = server.add_secure_port(address, self.credentials)
        server.start()
        self._running = server, threads

    def stop(self) -> None:
        """Closes all connections and calls, like a killed server. Has no effect on a stopped server."""
        if self._running is None:
            return
        server, threads = self._running
        self._running = None
        server.stop(None).wait()
        threads.shutdown()

    def drop_connections(self) -> None:
        """Closes all connections, whose calls fail with UNAVAILABLE, and accepts new ones."""
        self.stop()
        self.start()

    def fail_next(
        self,
        method: str,
        *,
        code: str = "UNAVAILABLE",
        reason: str = "OVERLOADED",
        message: str = "a scripted error",
        fields: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        retryable: bool | None = None,
        times: int = 1,
        after: int = 0,
    ) -> None:
        """Makes the next calls of a method fail, after the calls that earlier invocations apply to.

        Clients of isogloss retry UNAVAILABLE and RESOURCE_EXHAUSTED, with up to ClientOptions.attempts attempts. If
        `times` is lower than that, the program under test sees no error.

        Args:
            method: "Embed" (also applies to a message of an EmbedStream, which then fails alone), "EmbedStream" (ends
                the stream at its next message), "Similarity", "Health" or "ListModels".
            code: Name of the gRPC status.
            reason: Reason of ErrorInfo; empty for an error without it, like that of a proxy.
            message: Description of the error.
            fields: Paths of the invalid fields, such as "texts[3]".
            metadata: Metadata of ErrorInfo, such as {"limit": "3"}.
            retry_after_s: Seconds that the caller is asked to wait before a retry.
            retryable: False to ask the caller not to retry; None for the default of the code.
            times: Number of calls that fail.
            after: Number of calls that succeed before.

        Raises:
            ValueError: The method or the code is unknown.
        """
        if code not in grpc.StatusCode.__members__ or code == "OK":
            raise ValueError(f"unknown error code {code!r}; known: the names of gRPC's statuses, except OK")
        error = error_class(code, reason)(
            message,
            code=code,
            reason=reason,
            metadata=metadata,
            violations=tuple(FieldViolation(path, message) for path in fields),
            retry_after_s=retry_after_s,
            retryable=code in RETRIED_CODES if retryable is None else retryable,
        )
        self._script.fail(method, error, times=times, after=after)

    def wait_until_idle(self, timeout_s: float = 30.0) -> None:
        """Waits until no call is in progress, because each is answered or cancelled.

        Raises:
            TimeoutError: A call is still in progress after `timeout_s` seconds.
        """
        self._script.wait_until_idle(timeout_s)

    def hold(self, method: str, *, after: int = 0, times: int | None = None) -> Gate:
        """Returns a gate that holds calls of a method until it is opened.

        with server.hold("Embed") as gate:
            future = executor.submit(program)
            gate.wait_until_held()
            ...  # the call is in progress
        future.result()

        Args:
            method: As for `fail_next`.
            after: Number of calls that pass before.
            times: Maximum number of calls to hold; None for no maximum.

        Raises:
            ValueError: The method is unknown.
        """
        return self._script.hold(method, after=after, times=times)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
