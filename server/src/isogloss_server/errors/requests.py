"""What is wrong with a request, or wrong for this server."""

from isogloss_server.errors.kinds import (
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)


class MalformedRequestError(InvalidRequestError):
    """Bytes that are no message of the contract."""

    reason = "MALFORMED_REQUEST"


class DuplicateIdError(InvalidRequestError):
    """An id of a stream was used again while it was in flight."""

    reason = "DUPLICATE_ID"


class EmptyTextsError(InvalidRequestError):
    """A list of texts has none."""

    reason = "EMPTY_TEXTS"


class EmptyTextError(InvalidRequestError):
    """A text has no character that is not white space."""

    reason = "EMPTY_TEXT"


class TextWithoutTokensError(InvalidRequestError):
    """A text of which the tokenizer leaves nothing."""

    reason = "TEXT_WITHOUT_TOKENS"


class TextTooLongError(InvalidRequestError):
    """A text is longer than the model reads, and the caller forbade to cut it."""

    reason = "TEXT_TOO_LONG"


class TooManyTextsError(InvalidRequestError):
    """More texts than one request may have."""

    reason = "TOO_MANY_TEXTS"


class RequestTooLargeError(InvalidRequestError):
    """More bytes of text or vectors than one request may have."""

    reason = "REQUEST_TOO_LARGE"


class ResponseTooLargeError(InvalidRequestError):
    """The answer would have more pairs or bytes than one response may have."""

    reason = "RESPONSE_TOO_LARGE"


class MissingFieldError(InvalidRequestError):
    """A message without the field that it is about."""

    reason = "MISSING_FIELD"


class UnknownEnumError(InvalidRequestError):
    """A number that the contract's enum does not have."""

    reason = "UNKNOWN_ENUM"


class UnsupportedDimensionsError(InvalidRequestError):
    """A number of dimensions that the model does not offer."""

    reason = "UNSUPPORTED_DIMENSIONS"


class UnsupportedTruncationError(InvalidRequestError):
    """A truncation that the model does not offer."""

    reason = "UNSUPPORTED_TRUNCATION"


class BadMatrixError(InvalidRequestError):
    """A Matrix whose parts disagree, or whose numbers are none."""

    reason = "BAD_MATRIX"


class DimensionMismatchError(InvalidRequestError):
    """The two sides of a comparison differ in columns."""

    reason = "DIMENSION_MISMATCH"


class UnequalSidesError(InvalidRequestError):
    """Pairwise scores were asked of sides that differ in rows."""

    reason = "UNEQUAL_SIDES"


class BadKError(InvalidRequestError):
    """Fewer than one neighbour was asked for."""

    reason = "BAD_K"


class BadMinScoreError(InvalidRequestError):
    """A least score that is not a number."""

    reason = "BAD_MIN_SCORE"


class UnknownModelError(NotFoundError):
    """A model that is not served."""

    reason = "UNKNOWN_MODEL"


class SpaceMismatchError(PreconditionError):
    """Vectors or expectations of another space than the model's."""

    reason = "SPACE_MISMATCH"
