"""What the blocking and the asyncio client share beside the plans."""

import os
from dataclasses import replace

from isogloss._arguments import BulkArguments, EmbedArguments, seconds
from isogloss._channel import metadata
from isogloss._plans import Bulk, KnownModels, Pace, Plan, Run
from isogloss._plans.run import Result
from isogloss._plans.steps import Steps
from isogloss.errors import CallCancelledError, FailedPreconditionError
from isogloss.options import ClientOptions


class BaseClient:
    """A client's options and state, without a channel."""

    def __init__(self, target: str | None, options: ClientOptions | None) -> None:
        given = options or ClientOptions()
        self._options = given if target is None else replace(given, target=target)
        self._metadata = metadata(self._options)
        self._known = KnownModels()
        self._pace = Pace()
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"{type(self).__name__}({self._options.target!r}{state})"

    def _start(self, plan: Plan[Result], timeout_s: float | None) -> Run[Result]:
        """Returns `plan` under way; raises FailedPreconditionError where this client can make no calls."""
        self._require_open()
        self._require_own_process()
        return Run(plan, seconds("timeout_s", timeout_s, self._options.timeout_s))

    def _start_many(self, arguments: EmbedArguments, bulk: BulkArguments) -> Steps:
        """Returns the plan of an embed_many; raises FailedPreconditionError where this client can make no calls."""
        self._require_open()
        self._require_own_process()
        return Bulk(self._known, arguments, bulk, self._pace).steps()

    def _require_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("this client is closed", reason="CLIENT_CLOSED") from None

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            # grpc's threads did not follow into the child, where a call would wait for them until its deadline.
            message = "this client was made before the process forked; make one in the child"
            raise FailedPreconditionError(message, reason="CLIENT_FORKED")

    def _require_under_way(self) -> None:
        """Raises what ends a call that takes several steps where it cannot go on."""
        self._require_own_process()
        if self._closed:
            raise self._closed_meanwhile()

    @staticmethod
    def _closed_meanwhile() -> CallCancelledError:
        return CallCancelledError("the client was closed while the call ran", reason="CLIENT_CLOSED")
