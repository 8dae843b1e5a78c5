"""Options, state, deadlines and retries that the blocking and the asyncio client share."""

import math
import os
import random
import secrets
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, Never

from isogloss._arguments import seconds
from isogloss._bulk import BulkTiming
from isogloss._channel import metadata
from isogloss._embed import KnownLimits
from isogloss._failures import connection_problem
from isogloss.errors import (
    CallCancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    IsoglossError,
    KeyIgnoredWarning,
)
from isogloss.options import ClientOptions
from isogloss.wire.status import KEY_IGNORED, REQUEST_ID_TRAILER, WARNING_TRAILER

# Reasons with which a server, or another one at the same address, will soon be ready: retried until the deadline.
STARTING_REASONS = frozenset({"NOT_READY", "DRAINING"})
# A server that was never reached is tried again for this time: it may be starting too, or the address may be wrong.
FIRST_CONNECTION_S = 1.5
FIRST_DELAY_S = 0.1
GEVENT_SUPPORT = "grpc.experimental.gevent"
MAX_DELAY_S = 2.0
FRAMES, ASYNCIO_FRAMES = 6, 8  # from the code that warns to the program that uses the client


Metadata = tuple[tuple[str, str], ...]


class RunningCall:
    """Deadline, request id and retries of one call, which may consist of several requests."""

    def __init__(self, options: ClientOptions, timeout_s: float, *, attempts: float, wait_for_ready: bool) -> None:
        self.request_id = secrets.token_hex(16)
        self.metadata: Metadata = (*metadata(options), (REQUEST_ID_TRAILER, self.request_id))
        self.wait_for_ready = wait_for_ready
        self._target = options.target
        self._tls = options.tls
        self._timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s
        self.repeats = attempts > 1
        self._max_attempts = attempts
        self._begin_request()

    def _begin_request(self) -> None:
        self._attempts = 0  # without those that a starting server refused
        self._failures = 0
        self._first_failure_s = math.nan
        self._problem = ""

    def remaining_s(self) -> float:
        """Returns the seconds that the next request may take; raises DeadlineExceededError if none remain."""
        remaining_s = self._end_s - time.monotonic()
        if remaining_s <= 0:
            raise self._expired()
        return remaining_s

    def pause_s(self, seconds: float, problem: str) -> float:
        """Returns `seconds`, or less until the deadline; records the problem that causes the pause."""
        self._problem = problem
        return min(seconds, self.remaining_s())

    def answered(self) -> None:
        """Records that a request has succeeded; the next one has all attempts."""
        self._begin_request()

    def retry_delay_s(self, error: IsoglossError, *, reached: bool) -> float:
        """Returns the seconds to wait before the failed request is sent again.

        Args:
            error: The failure.
            reached: True if the server has answered this client before.

        Raises:
            IsoglossError: The request must not be sent again: the failure is not transient, the attempts are used up,
                or the delay would exceed the deadline.
        """
        # gRPC's core ends calls with CANCELLED that a stopping server has received, but not yet accepted.
        transient = error.retryable or (error.code == "CANCELLED" and error.request_id is None)
        error = self.described(error, reached=reached)
        self._failures += 1
        self._attempts += error.reason not in STARTING_REASONS
        if error.is_final or not (transient and self.repeats and self._attempts < self._max_attempts):
            raise error
        delay_s = _backoff_s(self._failures) if error.retry_after_s is None else error.retry_after_s
        now_s = time.monotonic()
        if self._failures == 1:
            self._first_failure_s = now_s
        if not (reached or self.wait_for_ready) and now_s + delay_s > self._first_failure_s + FIRST_CONNECTION_S:
            raise error
        if now_s + delay_s >= self._end_s:
            raise error
        self._problem = error.message
        return delay_s

    def described(self, error: IsoglossError, *, reached: bool = True) -> IsoglossError:
        """Returns `error` with the request id and, if it is not the server's, with a message of this client."""
        if error.request_id is not None:
            return error
        if error.code == "DEADLINE_EXCEEDED" and not error.reason:
            return self._expired(reached=reached)
        if error.code == "UNAVAILABLE" and not error.reason:
            lead = f"lost the connection to {self._target}" if reached else f"cannot connect to {self._target}"
            problem = connection_problem(error.message, tls=self._tls)
            return error.replaced(f"{lead}: {problem}", request_id=self.request_id)
        if error.code == "CANCELLED" and not error.reason:
            message = f"{self._target} ended the call without a reason; it may be stopping, or have too many calls"
            return error.replaced(message, request_id=self.request_id, retryable=True)
        return error.replaced(error.message, request_id=self.request_id)

    def _expired(self, *, reached: bool = True) -> DeadlineExceededError:
        message = f"no response from {self._target} within {self._timeout_s:g} s, the time limit of the whole call"
        if self._problem:
            message += f"; last problem: {self._problem}"
        elif not reached:
            message += "; no call of this client has been answered yet, so the address may be wrong"
        return DeadlineExceededError(message, request_id=self.request_id)


def trace_context() -> tuple[tuple[str, str], ...]:
    """Returns the metadata that makes a call a part of the current trace; none if the program has no current span.

    Without an import of OpenTelemetry: a program that has a span has imported it. If OpenTelemetry's instrumentation of
    grpc is active, it puts the context of its own span in this one's place.
    """
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is None:
        return ()
    context = current_span().get_span_context()
    if not context.is_valid:
        return ()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state.to_header()
    return (("traceparent", parent), ("tracestate", state)) if state else (("traceparent", parent),)


def _backoff_s(failures: int) -> float:
    """Returns the delay after `failures` consecutive failures: exponential, with jitter of a fifth."""
    return float(min(FIRST_DELAY_S * 3.0 ** min(failures - 1, 9), MAX_DELAY_S) * random.uniform(0.8, 1.2))  # noqa: S311


class BaseClient:
    """Options and state of a client, except its channel."""

    def __init__(self, target: str | None, options: ClientOptions | None, misplaced: dict[str, Never]) -> None:
        if misplaced:
            raise TypeError(self._misplaced_message(next(iter(misplaced))))
        options = options or ClientOptions()
        self._options = options if target is None else replace(options, target=target)
        self._limits = KnownLimits()
        self._bulk_timing = BulkTiming()
        self._reached = False  # the server has answered a request
        self._checks_key = self._options.api_key is not None  # until the first response
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"{type(self).__name__}({self._options.target!r}{state})"

    def __reduce__(self) -> Never:
        name = type(self).__name__
        message = f"a {name} has a connection and cannot be pickled or copied; create one from its ClientOptions"
        raise TypeError(message)

    def _start(self, timeout_s: float | None, *, wait_for_ready: bool = False) -> RunningCall:
        """Returns the state of a new call; raises FailedPreconditionError if the client cannot be used."""
        self._check_usable()
        return RunningCall(
            self._options,
            seconds("timeout_s", timeout_s, self._options.timeout_s),
            attempts=self._options.attempts,
            wait_for_ready=wait_for_ready or self._options.wait_for_ready,
        )

    def _start_patient(self, timeout_s: float) -> RunningCall:
        """Returns the state of a request of embed_many, whose repeats are bounded by time alone."""
        wait = self._options.wait_for_ready
        return RunningCall(self._options, timeout_s, attempts=math.inf, wait_for_ready=wait)

    def _call_options(self, running: RunningCall) -> dict[str, Any]:
        """Returns the arguments of grpc for the next attempt of a request.

        Once the server has been reached, requests wait for a connection that was lost, such as during a restart, unless
        the client makes only one attempt.
        """
        return {
            "timeout": running.remaining_s(),
            "metadata": (*running.metadata, *trace_context()),
            "wait_for_ready": running.wait_for_ready or (self._reached and running.repeats),
        }

    async def _awaited(self, call: Any) -> Any:
        """Returns the response of a call of grpc.aio, after `_check_key` of the first one."""
        response = await call
        if self._checks_key:
            self._check_key(await call.trailing_metadata(), ASYNCIO_FRAMES)
        return response

    def _check_key(self, trailers: Iterable[tuple[str, Any]] | None, frames: int = FRAMES) -> None:
        """Warns if the trailers of the first response say that the server ignores the API key."""
        self._checks_key = False
        if (WARNING_TRAILER, KEY_IGNORED) in map(tuple, trailers or ()):
            message = f"the server at {self._options.target} ignores the API key: it has no keys, everybody may call it"
            warnings.warn(message, KeyIgnoredWarning, stacklevel=frames)

    def _retry_delay_s(self, error: IsoglossError, running: RunningCall) -> float:
        """Returns the seconds to wait before the next attempt of a failed request; without one, raises its error."""
        if self._closed:
            raise self._closed_during_call()
        self._reached = self._reached or error.request_id is not None
        return running.retry_delay_s(error, reached=self._reached)

    def _check_usable(self) -> None:
        """Raises FailedPreconditionError if the client is closed, or belongs to the parent process."""
        self._check_open()
        self._check_process()

    def _interrupted(self) -> IsoglossError:
        """Returns the error of a running call after the client was closed or the process forked."""
        self._check_process()
        return self._closed_during_call()

    @staticmethod
    def _check_threads() -> None:
        """Raises FailedPreconditionError if gRPC's thread, which receives the responses, would be a greenlet."""
        gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
        advice = ""
        if gevent is not None and gevent.is_module_patched("threading") and GEVENT_SUPPORT not in sys.modules:
            advice = f"gevent has patched its threads; call {GEVENT_SUPPORT}.init_gevent() before creating a client"
        if eventlet is not None and eventlet.is_monkey_patched("thread"):
            advice = "eventlet has patched its threads, which gRPC does not support; use embed, or another process"
        if advice:
            message = f"embed_many would freeze this process: {advice}"
            raise FailedPreconditionError(message, reason="PATCHED_THREADS")

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("the client is closed; create another one", reason="CLIENT_CLOSED") from None

    def _check_process(self) -> None:
        # A child process does not have the threads of grpc, so that a call would block until its deadline.
        if os.getpid() != self._process:
            message = "the client was created before the process forked; create one in the child process"
            raise FailedPreconditionError(message, reason="CLIENT_FORKED")

    @staticmethod
    def _closed_during_call() -> CallCancelledError:
        return CallCancelledError("the client was closed during the call", reason="CLIENT_CLOSED")

    def _misplaced_message(self, keyword: str) -> str:
        message = f"{type(self).__name__}() got an unexpected keyword argument {keyword!r}"
        if keyword in {field.name for field in fields(ClientOptions)}:
            message += f"; pass it in the options: {type(self).__name__}(options=ClientOptions({keyword}=...))"
        return message
