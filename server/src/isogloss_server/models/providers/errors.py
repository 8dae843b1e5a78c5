"""Failures of calls to a provider: their kinds, and the mapping of HTTP statuses to them."""

import email.utils
import math
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
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

MAX_WORDS_CHARACTERS = 200  # of a provider's own message
WORDS_FIELDS = ("message", "msg", "detail", "error", "title")  # of an error body, best first
MAX_WORDS_DEPTH = 4
ENCODING_WORDS = ("base64", "encoding", "embedding_types")
KEY_PIECE_CHARACTERS = 8
# A provider's message is dropped if it shares as many characters in a row with a text, or holds a whole shorter one.
TEXT_PIECE_CHARACTERS = 12
MIN_TEXT_CHARACTERS = 3
MAX_SEARCHED_CHARACTERS = 1 << 18  # of all texts, so that the search takes at most some tens of milliseconds
MAX_RETRY_AFTER_S = 300.0  # longest pause that a provider can ask for; after it, it may ask again
FIRST_REDIRECTION, FIRST_CLIENT_ERROR, FIRST_SERVER_ERROR = 300, 400, 500  # HTTP statuses


@dataclass(frozen=True, slots=True)
class FailureKind:
    """A kind of failure: the error that callers get, and the reaction of the server."""

    error: type[DomainError]
    message: str  # "{provider}" and "{cause}" are filled in
    retryable: bool = False  # a retry may succeed
    counts_as_failure: bool = False  # for the circuit breaker: the provider failed
    misconfigured: bool = False  # the server's settings or its account are wrong: health reports it


REFUSED = FailureKind(ProviderRefusedError, "{provider} rejected the request: {cause}")
CREDENTIALS = FailureKind(
    ProviderCredentialsError, "{provider} rejected the server's API key: {cause}", misconfigured=True
)
NO_MODEL = FailureKind(
    ProviderModelError, "{provider} does not have the model at this address: {cause}", misconfigured=True
)
RATE_LIMIT = FailureKind(ProviderRateLimitError, "the rate limit of {provider} is reached: {cause}", retryable=True)
QUOTA = FailureKind(
    ProviderRateLimitError, "the quota of the account with {provider} is used up: {cause}", misconfigured=True
)
UNAVAILABLE = FailureKind(
    ProviderUnavailableError, "{provider} is failing: {cause}", retryable=True, counts_as_failure=True
)
UNREACHABLE = FailureKind(
    ProviderUnavailableError, "{provider} is unreachable: {cause}", retryable=True, counts_as_failure=True
)
BAD_RESPONSE = FailureKind(
    ProviderResponseError, "the response of {provider} is invalid: {cause}", retryable=True, counts_as_failure=True
)
TIMEOUT = FailureKind(DeadlineExceededError, "{provider} did not respond in time")
LONG_TIMEOUT = FailureKind(DeadlineExceededError, "{provider} did not respond in time", counts_as_failure=True)

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
    501: REFUSED,  # the server does not support what the request asks for
}

CONNECTION_CAUSES = {  # by the names that HTTP libraries share
    "ReadError": "the connection broke",
    "WriteError": "the connection broke",
    "CloseError": "the connection broke",
    "RemoteProtocolError": "the server closed the connection or does not speak HTTP",
    "ProxyError": "the proxy failed",
    "UnsupportedProtocol": "unsupported URL",
}


class ProviderCallError(Exception):
    """A call to a provider failed."""

    def __init__(
        self,
        kind: FailureKind,
        provider: str,
        cause: str = "",
        *,
        words: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(kind.message.format(provider=provider, cause=cause))
        self.kind = kind
        self.retry_after_s = retry_after_s  # as the provider asks
        self._words = words

    @property
    def reason(self) -> str:
        """The reason of the error that the caller receives."""
        return self.kind.error.reason

    @property
    def in_full(self) -> str:
        """The message with the provider's own words: for the caller of the call, and for calls without a caller."""
        return f"{self}, {self._words}" if self._words else str(self)

    @property
    def names_encoding(self) -> bool:
        """True if the provider's words are about the encoding of the vectors."""
        return any(word in self._words.casefold() for word in ENCODING_WORDS)

    def to_domain_error(self, wait_s: float, *, is_retried: bool) -> DomainError:
        """Returns the error for the caller.

        Args:
            wait_s: The pause before a retry, in seconds, if one may succeed.
            is_retried: True if the server has retried the call.
        """
        error = self.kind.error(self.in_full, retry_after_s=wait_s if self.kind.retryable else math.inf)
        error.is_retried = is_retried
        return error


def from_status(
    provider: str, status: int, headers: Mapping[str, str], *, words: str = "", quota_exhausted: bool = False
) -> ProviderCallError:
    """Maps an HTTP status to an error.

    Args:
        provider: Name of the provider, for people.
        status: The HTTP status.
        headers: The headers of the response.
        words: The provider's own message, as `own_words` returns it.
        quota_exhausted: True if the response says so; its status is 429, as for a rate limit.

    Returns:
        The error, with the pause that the headers ask for.
    """
    kind = BY_STATUS.get(status)
    if kind is None:
        is_client_error = FIRST_CLIENT_ERROR <= status < FIRST_SERVER_ERROR
        kind = REFUSED if is_client_error else UNAVAILABLE if status >= FIRST_SERVER_ERROR else BAD_RESPONSE
    if kind is RATE_LIMIT and quota_exhausted:
        kind = QUOTA
    cause = f"HTTP {status}"
    if kind is BAD_RESPONSE and status < FIRST_REDIRECTION:
        cause += ", unreadable body"
    return ProviderCallError(kind, provider, cause, words=words, retry_after_s=retry_after_s(headers))


def own_words(body: object, key: SecretStr, texts: Sequence[str]) -> str:
    """Returns what the body of an error says, in one line.

    Args:
        body: The body: parsed JSON, or text.
        key: The API key of the call.
        texts: The texts of the call.

    Returns:
        At most MAX_WORDS_CHARACTERS printable characters; an empty string if there are none, or if they quote a part
        of the key or of a text.
    """
    found = _words(body)
    printable = "".join(character if character.isprintable() else " " for character in found[: 1 << 12])
    line = " ".join(printable.split())[:MAX_WORDS_CHARACTERS]
    return "" if _quotes_text(line, texts) else redact_key(line, key)


def _words(body: object, depth: int = 0) -> str:
    """Returns the message in the body of an error, of the shapes that providers and web frameworks use."""
    if isinstance(body, str):
        return "" if body.lstrip().startswith("<") else body  # a page of a proxy
    if depth == MAX_WORDS_DEPTH:
        return ""
    if isinstance(body, list):
        return _words(body[0], depth + 1) if body else ""
    if not isinstance(body, dict):
        return ""
    place = body.get("loc")  # of the field, as FastAPI reports it
    where = ".".join(map(str, place)) + ": " if isinstance(place, list) else ""
    said = next(filter(None, (_words(body.get(name), depth + 1) for name in WORDS_FIELDS)), "")
    return where + said if said else ""


def _quotes_text(line: str, texts: Sequence[str]) -> bool:
    """Returns True if a message quotes a text, or may quote one in a form that cannot be compared."""
    if not line:
        return False
    if "\\" in line or sum(map(len, texts)) > MAX_SEARCHED_CHARACTERS:
        return True
    line = line.casefold()
    last = max(0, len(line) - TEXT_PIECE_CHARACTERS) + 1
    pieces = {line[at : at + TEXT_PIECE_CHARACTERS] for at in range(last)}
    for text in texts:
        plain = " ".join(text.split()).casefold()
        if len(plain) >= TEXT_PIECE_CHARACTERS:
            if any(piece in plain for piece in pieces):
                return True
        elif len(plain) >= MIN_TEXT_CHARACTERS and plain in line:
            return True
    return False


def connection_failure(error: BaseException) -> str:
    """Describes why an HTTP library could not connect, from only the types and numbers of the exceptions."""
    for link in _chain(error):
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"invalid TLS certificate ({link.verify_message})"
        if isinstance(link, ssl.SSLError):
            return "the TLS handshake failed"
        if isinstance(link, socket.gaierror):
            return "unknown host name"
        if isinstance(link, OSError) and link.errno:
            return os.strerror(link.errno).lower()
    return CONNECTION_CAUSES.get(type(error).__name__, "no connection")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.exceptions[0] if isinstance(link, BaseExceptionGroup) else link.__cause__ or link.__context__


def redact_key(message: str, key: SecretStr) -> str:
    """Returns a provider's message, or an empty string if it quotes any 8 consecutive characters of the key."""
    secret = key.get_secret_value()
    pieces = (secret[at : at + KEY_PIECE_CHARACTERS] for at in range(max(1, len(secret) - KEY_PIECE_CHARACTERS + 1)))
    return "" if secret and any(piece in message for piece in pieces) else message


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Parses the pause that a response asks for.

    A date is compared with the response's own `Date`, so that the clocks of the two machines need not agree.

    Args:
        headers: Of the response; `retry-after-ms`, or `Retry-After` (RFC 9110, 10.2.3) in seconds or as a date.

    Returns:
        Seconds, at most MAX_RETRY_AFTER_S; None without a valid header.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(lower[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return min(seconds, MAX_RETRY_AFTER_S) if seconds >= 0 else None
    try:
        until, now = (email.utils.parsedate_to_datetime(lower[name]) for name in ("retry-after", "date"))
        return min(max(0.0, (until - now).total_seconds()), MAX_RETRY_AFTER_S)
    except (KeyError, ValueError, TypeError, OverflowError):  # missing, no date, or only one has a time zone
        return None
