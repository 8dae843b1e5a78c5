"""Why the server cannot answer now."""

from isogloss_server.errors.kinds import (
    UnavailableError,
)


class ModelNotReadyError(UnavailableError):
    """The model is loading, or failed to load."""

    reason = "NOT_READY"


class DrainingError(UnavailableError):
    """The server is about to stop; another one may answer."""

    reason = "DRAINING"
