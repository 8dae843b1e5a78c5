"""EmbedStream of the fake server: messages answered as they are ready, each by its id."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from isogloss.errors import InternalError, IsoglossError
from isogloss.testing._errors import refusal, to_status
from isogloss.v1 import embedding_pb2 as pb

WINDOW_REQUESTS = 32  # unanswered, before no more is read


class Stream:
    """One stream. A thread reads it, and another one answers each message, so that one that is held stops no other.

    Args:
        requests: The messages of the caller, as grpc gives them.
        context: grpc's, of the call.
        arrive: Called with each message in order; what it raises ends the stream, after the answers to all before.
        answer: Called with each message in a thread of its own; what it raises answers for that message alone.
    """

    def __init__(
        self,
        requests: Iterator[pb.EmbedStreamRequest],
        context: Any,
        arrive: Callable[[pb.EmbedStreamRequest], None],
        answer: Callable[[pb.EmbedStreamRequest], pb.EmbedResponse],
    ) -> None:
        self._requests, self._context = requests, context
        self._arrive, self._answer = arrive, answer
        self._changed = threading.Condition()
        self._in_flight: dict[int, threading.Thread] = {}
        self._ready: SimpleQueue[pb.EmbedStreamResponse | IsoglossError | None] = SimpleQueue()

    def responses(self) -> Iterator[pb.EmbedStreamResponse]:
        """Yields the answers; raises the error that ends the stream."""
        self._context.add_callback(self._wake)
        threading.Thread(target=self._read, daemon=True).start()
        while (found := self._ready.get()) is not None:
            if isinstance(found, IsoglossError):
                raise found
            with self._changed:
                del self._in_flight[found.id]  # before the caller sees the answer, and may use the id again
                self._changed.notify_all()
            yield found

    def _read(self) -> None:
        end: IsoglossError | None = None
        try:
            for request in self._requests:
                try:
                    self._arrive(request)
                except IsoglossError as error:
                    end = error
                    break
                self._take(request)
        except IsoglossError as error:  # an id used twice: what is in flight stays unanswered
            self._ready.put(error)
            return
        except grpc.RpcError:  # the caller is gone, or the server stops
            pass
        for thread in list(self._in_flight.values()):
            thread.join()
        self._ready.put(end)

    def _take(self, request: pb.EmbedStreamRequest) -> None:
        thread = threading.Thread(target=self._respond, args=(request,), daemon=True)
        with self._changed:
            if request.id in self._in_flight:
                raise refusal("DUPLICATE_ID", "the id is still in flight", "id", id=request.id)
            self._in_flight[request.id] = thread
        thread.start()
        with self._changed:
            self._changed.wait_for(lambda: len(self._in_flight) < WINDOW_REQUESTS or not self._context.is_active())

    def _respond(self, request: pb.EmbedStreamRequest) -> None:
        response = pb.EmbedStreamResponse(id=request.id)
        try:
            response.response.CopyFrom(self._answer(request))
        except IsoglossError as error:
            response.error.CopyFrom(to_status(error))
        except Exception as error:  # noqa: BLE001 - without an answer, the caller would wait for ever
            response.error.CopyFrom(to_status(InternalError(f"the fake server failed: {error!r}", reason="INTERNAL")))
        self._ready.put(response)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
