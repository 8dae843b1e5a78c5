"""The words that arguments and results are written in. An argument takes a member or its lower-case value."""

from enum import StrEnum


class InputType(StrEnum):
    """What a text is for. Models without roles give the same vector for every type."""

    SIMILARITY = "similarity"
    QUERY = "query"
    DOCUMENT = "document"
    CLASSIFICATION = "classification"
    CLUSTERING = "clustering"


class Truncation(StrEnum):
    """What becomes of a text longer than the model reads."""

    END = "end"  # keep the beginning
    START = "start"  # keep the ending
    ERROR = "error"  # refuse it: InvalidArgumentError, reason TEXT_TOO_LONG


class Priority(StrEnum):
    """The lane of a call: BULK work never delays INTERACTIVE work by more than one batch."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class ElementType(StrEnum):
    """The type of each number of a vector on the wire."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"  # value = element * scale of the row
    UINT8 = "uint8"  # value = (element - 128) * scale of the row
    UBINARY = "ubinary"  # one bit, set where the value is > 0; the first column in the high bit of a uint8
    BINARY = "binary"  # the ubinary byte minus 128, as int8


class Metric(StrEnum):
    """The measure of nearness. Greater is nearer for all of them: distances come negated."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"


class ServingStatus(StrEnum):
    """How a model, or the whole server, fares."""

    UNKNOWN = "unknown"  # the server says something that this version of the client has no word for
    SERVING = "serving"
    DEGRADED = "degraded"  # serving, but slower or with a part down
    STARTING = "starting"
    NOT_SERVING = "not_serving"
