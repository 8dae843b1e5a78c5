"""What a call to a provider can end in, other than vectors: one table from HTTP status to what becomes of it."""

import email.utils
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from isogloss_server.errors import (
    DeadlineExceededError,
    DomainError,
    ProviderCredentialsError,
    ProviderModelError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderResponseError,
    ProviderUnavailableError,
)

MAX_SAID_CHARACTERS = 200


KEY_PIECE_CHARACTERS = 8


LONGEST_RETRY_S = 300.0  # that a provider is let alone on its word: then it may say so again


SERVER_FAULTS = 500  # HTTP statuses from here on


@dataclass(frozen=True, slots=True)
class FailureKind:
    """One kind of fault: the error that callers get, and what the server makes of it."""

    error: type[DomainError]
    message: str  # "{provider}" and "{why}" stand for what is known
    retryable: bool = False  # another try may help
    counts_as_failure: bool = False  # the provider is at fault: the breaker counts it
    misconfigured: bool = False  # the server's settings are at fault: health says so


REFUSED = FailureKind(ProviderRefusedError, "{provider} refuses the request: {why}")


CREDENTIALS = FailureKind(
    ProviderCredentialsError, "{provider} does not accept the server's key: {why}", misconfigured=True
)


NO_MODEL = FailureKind(
    ProviderModelError, "{provider} has no such model, or not at this address: {why}", misconfigured=True
)


RATE_LIMIT = FailureKind(ProviderRateLimitError, "{provider} takes no more at the moment: {why}", retryable=True)


QUOTA = FailureKind(ProviderRateLimitError, "the account with {provider} is used up: {why}", misconfigured=True)


UNAVAILABLE = FailureKind(ProviderUnavailableError, "{provider} fails: {why}", retryable=True, counts_as_failure=True)


UNREACHABLE = FailureKind(
    ProviderUnavailableError, "{provider} cannot be reached: {why}", retryable=True, counts_as_failure=True
)


BAD_ANSWER = FailureKind(
    ProviderResponseError, "the answer of {provider} is of no use: {why}", retryable=True, counts_as_failure=True
)


TIMEOUT = FailureKind(DeadlineExceededError, "{provider} did not answer in time")


LONG_TIMEOUT = FailureKind(DeadlineExceededError, "{provider} did not answer in time", counts_as_failure=True)


BY_STATUS: Mapping[int, FailureKind] = {
    401: CREDENTIALS,
    402: CREDENTIALS,
    403: CREDENTIALS,
    404: NO_MODEL,
    408: UNAVAILABLE,
    409: UNAVAILABLE,
    429: RATE_LIMIT,
    498: CREDENTIALS,  # Cohere's own: an invalid token
    499: UNAVAILABLE,
}


class ProviderCallError(Exception):
    """A call to a provider that gave no vectors."""

    def __init__(self, kind: FailureKind, provider: str, why: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(kind.message.format(provider=provider, why=why))
        self.kind = kind
        self.retry_after_s = retry_after_s  # as the provider asks

    def error(self, wait_s: float) -> DomainError:
        """Returns what the caller gets; where another try may help, it should wait so long before."""
        return self.kind.error(str(self), retry_after_s=wait_s if self.kind.retryable else math.inf)


def from_status(
    provider: str, status: int, headers: Mapping[str, str], *, said: str = "", exhausted: bool = False
) -> ProviderCallError:
    """Returns the fault of an HTTP status.

    `said` is the provider's own sentence: only a refused request's is passed on, since others may quote the key.
    `exhausted` where the provider says that no money is left, which it does by status 429 too.
    """
    kind = BY_STATUS.get(status)
    if kind is None:
        kind = UNAVAILABLE if status >= SERVER_FAULTS else REFUSED if status >= 400 else BAD_ANSWER
    if kind is RATE_LIMIT and exhausted:
        kind = QUOTA
    why = f"HTTP {status}"
    if kind is REFUSED and said:
        why += f", {said[:MAX_SAID_CHARACTERS]}"
    return ProviderCallError(kind, provider, why, retry_after_s=retry_after_s(headers))


def redact_key(said: str, key: SecretStr) -> str:
    """Returns a provider's sentence, or nothing of it where it quotes as much as a piece of the key."""
    secret = key.get_secret_value()
    pieces = (secret[at : at + KEY_PIECE_CHARACTERS] for at in range(max(1, len(secret) - KEY_PIECE_CHARACTERS + 1)))
    return "" if secret and any(piece in said for piece in pieces) else said


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that `retry-after-ms` or `Retry-After` (RFC 9110, 10.2.3) asks to wait, if any.

    A date is measured from the answer's own `Date`, so that the two machines' clocks need not agree.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(lower[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return min(seconds, LONGEST_RETRY_S) if seconds >= 0 else None
    try:
        until, now = (email.utils.parsedate_to_datetime(lower[name]) for name in ("retry-after", "date"))
        return min(max(0.0, (until - now).total_seconds()), LONGEST_RETRY_S)
    except (KeyError, ValueError, TypeError):  # none, no date, or dates with and without a zone
        return None
