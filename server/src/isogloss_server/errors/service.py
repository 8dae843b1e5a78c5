"""Why the server cannot answer now."""

from isogloss_server.errors.kinds import ExhaustedError, UnavailableError


class ModelNotReadyError(UnavailableError):
    """The model is loading, or failed to load."""

    reason = "NOT_READY"


class DrainingError(UnavailableError):
    """The server is about to stop; another one may answer."""

    reason = "DRAINING"


class ModelStuckError(UnavailableError):
    """The model does not come to an end with what it computes."""

    reason = "MODEL_STUCK"


class WorkerDiedError(UnavailableError):
    """The thread that computed ended, and a new one has taken its place."""

    reason = "WORKER_DIED"


class OverloadedError(ExhaustedError):
    """More work waits than there is room for, or than can be done before the deadline."""

    reason = "OVERLOADED"


class OutOfMemoryError(ExhaustedError):
    """The machine has not enough memory for even this text alone."""

    reason = "OUT_OF_MEMORY"
