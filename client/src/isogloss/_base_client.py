"""Options, state and checks that the blocking and the asyncio client share."""

import os
import time
from dataclasses import fields, replace
from typing import Never

from isogloss._arguments import seconds
from isogloss._bulk import BulkTiming
from isogloss._channel import metadata
from isogloss._embed import KnownLimits
from isogloss.errors import CallCancelledError, DeadlineExceededError, FailedPreconditionError, IsoglossError
from isogloss.options import ClientOptions


class Deadline:
    """The time limit of a whole call, which may consist of several requests."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Returns the seconds that the next request may take; raises DeadlineExceededError if none remain."""
        remaining_s = self._end_s - time.monotonic()
        if remaining_s <= 0:
            message = f"no response within {self._timeout_s:g} s, the time limit of all requests of this call together"
            raise DeadlineExceededError(message)
        return remaining_s


class BaseClient:
    """Options and state of a client, except its channel."""

    def __init__(self, target: str | None, options: ClientOptions | None, misplaced: dict[str, Never]) -> None:
        if misplaced:
            raise TypeError(self._misplaced_message(next(iter(misplaced))))
        options = options or ClientOptions()
        self._options = options if target is None else replace(options, target=target)
        self._metadata = metadata(self._options)
        self._limits = KnownLimits()
        self._bulk_timing = BulkTiming()
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"{type(self).__name__}({self._options.target!r}{state})"

    def _start(self, timeout_s: float | None) -> Deadline:
        """Returns the deadline of a new call; raises FailedPreconditionError if the client cannot be used."""
        self._check_usable()
        return Deadline(seconds("timeout_s", timeout_s, self._options.timeout_s))

    def _check_usable(self) -> None:
        """Raises FailedPreconditionError if the client is closed, or belongs to the parent process."""
        self._check_open()
        self._check_process()

    def _interrupted(self) -> IsoglossError:
        """Returns the error of a running call after the client was closed or the process forked."""
        self._check_process()
        return self._closed_during_call()

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
