"""What can go wrong, each with its reason word. Knows no gRPC: rpc/status.py gives each kind its status.

DomainError
├── InvalidRequestError        the caller can mend the request
│   ├── MalformedRequestError  DuplicateIdError
│   ├── EmptyTextsError  EmptyTextError  TextWithoutTokensError  TextTooLongError
│   ├── TooManyTextsError  RequestTooLargeError  ResponseTooLargeError
│   ├── MissingFieldError  UnknownEnumError  UnsupportedDimensionsError  UnsupportedTruncationError
│   ├── BadMatrixError  DimensionMismatchError  UnequalSidesError  BadKError  BadMinScoreError
│   └── ProviderRefusedError
├── NotFoundError
│   └── UnknownModelError
├── PreconditionError          right in itself, wrong for this server
│   └── SpaceMismatchError  ProviderCredentialsError  ProviderModelError
├── ExhaustedError             more is asked for than there is at the moment
│   └── OverloadedError  OutOfMemoryError  ProviderRateLimitError
├── UnavailableError           another moment or another server may answer
│   ├── ModelNotReadyError  DrainingError  ModelStuckError  WorkerDiedError
│   └── ProviderUnavailableError  ProviderAnswerError
├── TimeUpError                nobody waits for the answer any more
└── UnforeseenError            a fault of the server

StartupError                   the server cannot start; one line says why
├── ModelFilesError
│   └── UnsupportedModelError  no damage: another runtime may have what this one lacks
├── ProviderSetupError          a provider's model cannot be served: no key, a key refused, a model retired
├── CacheSetupError             the shared cache: no package, or no URL
└── ListenError

RowFaults                      not an error of its own: what is wrong with which texts of a call
"""

from isogloss_server.errors.kinds import (
    DomainError,
    ExhaustedError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    TimeUpError,
    UnavailableError,
    UnforeseenError,
    Violation,
)
from isogloss_server.errors.providers import (
    ProviderAnswerError,
    ProviderCredentialsError,
    ProviderModelError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from isogloss_server.errors.requests import (
    BadKError,
    BadMatrixError,
    BadMinScoreError,
    DimensionMismatchError,
    DuplicateIdError,
    EmptyTextError,
    EmptyTextsError,
    MalformedRequestError,
    MissingFieldError,
    RequestTooLargeError,
    ResponseTooLargeError,
    SpaceMismatchError,
    TextTooLongError,
    TextWithoutTokensError,
    TooManyTextsError,
    UnequalSidesError,
    UnknownEnumError,
    UnknownModelError,
    UnsupportedDimensionsError,
    UnsupportedTruncationError,
)
from isogloss_server.errors.rows import (
    MAX_VIOLATIONS,
    RowFaults,
    merge,
)
from isogloss_server.errors.service import (
    DrainingError,
    ModelNotReadyError,
    ModelStuckError,
    OutOfMemoryError,
    OverloadedError,
    WorkerDiedError,
)
from isogloss_server.errors.startup import (
    CacheSetupError,
    ListenError,
    ModelFilesError,
    ProviderSetupError,
    StartupError,
    UnsupportedModelError,
)

__all__ = [
    "MAX_VIOLATIONS",
    "BadKError",
    "BadMatrixError",
    "BadMinScoreError",
    "CacheSetupError",
    "DimensionMismatchError",
    "DomainError",
    "DrainingError",
    "DuplicateIdError",
    "EmptyTextError",
    "EmptyTextsError",
    "ExhaustedError",
    "InvalidRequestError",
    "ListenError",
    "MalformedRequestError",
    "MissingFieldError",
    "ModelFilesError",
    "ModelNotReadyError",
    "ModelStuckError",
    "NotFoundError",
    "OutOfMemoryError",
    "OverloadedError",
    "PreconditionError",
    "ProviderAnswerError",
    "ProviderCredentialsError",
    "ProviderModelError",
    "ProviderRateLimitError",
    "ProviderRefusedError",
    "ProviderSetupError",
    "ProviderUnavailableError",
    "RequestTooLargeError",
    "ResponseTooLargeError",
    "RowFaults",
    "SpaceMismatchError",
    "StartupError",
    "TextTooLongError",
    "TextWithoutTokensError",
    "TimeUpError",
    "TooManyTextsError",
    "UnavailableError",
    "UnequalSidesError",
    "UnforeseenError",
    "UnknownEnumError",
    "UnknownModelError",
    "UnsupportedDimensionsError",
    "UnsupportedModelError",
    "UnsupportedTruncationError",
    "Violation",
    "WorkerDiedError",
    "merge",
]
