"""Traces: the spans of calls, behind an interface without a library, and the trace context that callers send.

A call is traced if the tracer has made a span for it. `current` returns that span, or None, and this question is all
that tracing costs an untraced call. A span has times, counts, ids, and names that the server chose, such as that of a
model or the reason of an error. It never has a text, or the message of an error.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, TypeAlias

from isogloss_server.clock import Clock

PACKAGE = "isogloss_server"
TRACEPARENT = "traceparent"  # https://www.w3.org/TR/trace-context/
_TRACE_ID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
# Statuses that are errors of a server, by https://opentelemetry.io/docs/specs/semconv/rpc/grpc/; others are a caller's.
SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

Attributes: TypeAlias = Mapping[str, str | int | float]


class Span(Protocol):
    """A part of the work for a call, with begin and end; both are moments of the clock. Any thread may use it."""

    @property
    def trace_id(self) -> str:
        """The id of the trace, 32 hexadecimal digits."""
        ...

    @property
    def is_recorded(self) -> bool:
        """True if the trace is sampled; parts of a trace that is not sampled need no spans."""
        ...

    def start(self, name: str, began_s: float, *, links: Sequence["Span"] = (), is_call: bool = False) -> "Span":
        """Starts a span for a part of this one.

        Args:
            name: The name of the part.
            began_s: The moment when it began.
            links: Spans that belong to it and are not above it.
            is_call: True for a call to another server.
        """
        ...

    def end(self, ended_s: float, attributes: Attributes | None = None, *, error: str = "") -> None:
        """Ends the span; `error` is the type of the error that it ended with."""
        ...


class Tracer(Protocol):
    """Makes the spans of calls, and exports the spans that have ended."""

    def start(self, method: str, metadata: Mapping[str, str], began_s: float) -> Span:
        """Starts the span of a call, as a part of the trace that its metadata names.

        Args:
            method: The full name of the method, such as isogloss.v1.EmbeddingService/Embed.
            metadata: The metadata of the call.
            began_s: The moment when it began.
        """
        ...

    def close(self) -> None:
        """Exports the spans that wait, within a limited time."""
        ...


_current: ContextVar[Span | None] = ContextVar("span", default=None)
current = _current.get  # the function itself, which costs less than one that calls it
enter = _current.set  # makes a span the current one of this task, and of the tasks that it starts
_UNTRACED = nullcontext()


class _Timed(AbstractContextManager[None]):
    """Ends a span with the end of a block."""

    def __init__(self, span: Span, clock: Clock, attributes: Attributes) -> None:
        self._span = span
        self._clock = clock
        self._attributes = attributes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.end(self._clock.monotonic_s(), self._attributes, error=error_type(error))


def timed(
    name: str, clock: Clock, attributes: Attributes | None = None, *, is_call: bool = False
) -> AbstractContextManager[None]:
    """Returns a context manager that makes a block of a traced call a span; see `Span.start`."""
    span = _current.get()
    if span is None:
        return _UNTRACED
    return _Timed(span.start(name, clock.monotonic_s(), is_call=is_call), clock, attributes or {})


def record(span: Span, name: str, times_s: tuple[float, float], attributes: Attributes | None = None) -> None:
    """Adds a part that has ended to a span; `times_s` are its begin and end."""
    span.start(name, times_s[0]).end(times_s[1], attributes)


def error_type(error: BaseException | None) -> str:
    """Returns the reason of an error of this package, or the class of an error; an empty string for None.

    The attribute `reason` of a library's error may be a message, which could quote a text.
    """
    if error is None:
        return ""
    name = type(error).__qualname__
    return str(getattr(error, "reason", name)) if type(error).__module__.startswith(f"{PACKAGE}.") else name


class QueuedCall:
    """The texts of a traced call in a batch queue, from their submission."""

    def __init__(self, span: Span, submitted_s: float) -> None:
        self.span = span
        self._submitted_s = submitted_s
        self._is_recorded = False

    def leave(self, moment_s: float, *, error: str = "") -> None:
        """Records the wait, if it is the first time: a call may have several batches."""
        if not self._is_recorded:
            self._is_recorded = True
            self.span.start("queue", self._submitted_s).end(moment_s, error=error)


def record_batch(
    calls: Sequence[QueuedCall], times_s: tuple[float, float], attributes: Attributes, *, error: str = ""
) -> None:
    """Records a batch with texts of `calls`, which are traced and at least one.

    The batch is a part of the first call's trace, linked to the spans of all of them. Each call has a span of the
    inference, which is linked to the batch.
    """
    began_s, ended_s = times_s
    batch = calls[0].span.start("batch", began_s, links=[call.span for call in calls])
    batch.end(ended_s, attributes, error=error)
    for call in calls:
        call.leave(began_s)
        call.span.start("inference", began_s, links=[batch]).end(ended_s, error=error)


def trace_id(metadata: Mapping[str, str]) -> str:
    """Returns the id of the trace that a caller sent in its metadata; an empty string without a valid one."""
    found = _TRACE_ID.fullmatch(metadata.get(TRACEPARENT, ""))
    return found[1] if found else ""


def peer_attributes(peer: str) -> Attributes:
    """Returns the attributes of the other end of a connection, which gRPC names ipv4:HOST:PORT or ipv6:[HOST]:PORT."""
    kind, _, address = peer.partition(":")
    host, _, port = address.rpartition(":")
    if not (kind.startswith("ip") and port.isdecimal()):
        return {"network.peer.address": address} if address else {}
    return {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}
