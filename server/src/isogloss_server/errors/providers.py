"""What comes of a provider's API."""

from isogloss_server.errors.kinds import ExhaustedError, InvalidRequestError, PreconditionError, UnavailableError


class ProviderRefusedError(InvalidRequestError):
    """The provider says that the request is wrong."""

    reason = "PROVIDER_REFUSED"


class ProviderCredentialsError(PreconditionError):
    """The provider does not accept the server's key."""

    reason = "PROVIDER_CREDENTIALS"


class ProviderModelError(PreconditionError):
    """The provider does not have the model, or not for the server's key."""

    reason = "PROVIDER_MODEL"


class ProviderRateLimitError(ExhaustedError):
    """The provider takes no more at the moment, or the server keeps to the provider's limit."""

    reason = "PROVIDER_RATE_LIMIT"


class ProviderUnavailableError(UnavailableError):
    """The provider cannot be reached, or fails."""

    reason = "PROVIDER_UNAVAILABLE"


class ProviderAnswerError(UnavailableError):
    """The provider answered with what cannot be vectors of these texts."""

    reason = "PROVIDER_ANSWER"
