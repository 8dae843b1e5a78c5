"""Converts gRPC errors to the exceptions of `isogloss.errors`."""

from dataclasses import replace
from typing import Any

import grpc

from isogloss.errors import FieldViolation, IsoglossError, error_class
from isogloss.wire.status import (
    DETAILS_TRAILER,
    PUSHBACK_TRAILER,
    REQUEST_ID_TRAILER,
    parse,
    read,
)

# Words in gRPC's text of a failed connection -> the problem. They only choose the words of a message: how an error is
# handled depends on its status.
CLOSED = "the server closed the connection; it may be stopping, or require ClientOptions.tls"
CLOSED_TLS = (
    "the server closed the connection; it may be stopping, or require a client certificate "
    "(ClientOptions.client_certificate) of an authority that it trusts"
)
CONNECTION_PROBLEMS = (
    ("connection refused", "connection refused, so nothing listens there"),
    ("domain name not found", "the host name cannot be resolved"),
    ("resolution failed", "the host name cannot be resolved"),
    ("errors resolving", "the host name cannot be resolved"),
    ("no such file", "the socket does not exist"),
    ("wrong_version_number", "the server does not use TLS, but ClientOptions.tls is set"),
    ("certificate has expired", "the server's certificate has expired, or the date of this machine is wrong"),
    ("certificate_verify_failed", "the server's certificate is not trusted; see ClientOptions.root_certificates"),
    ("peer certificate", "the server's certificate is for another host name"),
    ("hostname verification", "the server's certificate is for another host name"),
    (
        "failed to create security handshaker",
        "ClientOptions.client_key does not belong to client_certificate, or gRPC does not support its kind",
    ),
    ("failed parsing http/2", "the server there does not use gRPC"),
    ("unreachable", "the network is unreachable"),
    ("no route to host", "the network is unreachable"),
    ("timed out", "no response to the attempt to connect"),
    ("timeout", "no response to the attempt to connect"),
    ("socket closed", CLOSED),
    ("connection reset", CLOSED),
    ("broken pipe", CLOSED),
    ("end of tcp stream", CLOSED),
)


def connection_problem(text: str, *, tls: bool) -> str:
    """Returns the problem in gRPC's text of a failed connection, or the end of the text if it is unknown."""
    lower = text.lower()
    known = (problem for words, problem in CONNECTION_PROBLEMS if words in lower)
    problem = next(known, text.rpartition("last error: ")[2])
    return CLOSED_TLS if tls and problem == CLOSED else problem


def from_rpc_error(failure: grpc.RpcError) -> IsoglossError:
    """Returns the exception for a failed call, blocking or asyncio, with the contents of its status and trailers."""
    call: Any = failure  # grpc raises objects that are also grpc.Call, which its types do not declare
    trailers = {key: value for key, value in call.trailing_metadata() or ()}  # noqa: C416 - grpc's own pair type
    code = call.code().name
    details = read(parse(trailers.get(DETAILS_TRAILER, b"")))
    retryable = None
    pushback = str(trailers.get(PUSHBACK_TRAILER, ""))
    # A pushback that is not a number of milliseconds forbids clients to repeat the call by themselves. Without a delay
    # for the caller, a retry is pointless, whatever the code.
    is_final = bool(pushback) and not pushback.isdecimal()
    if details.retry_after_s is None and pushback:
        if not is_final:
            details = replace(details, retry_after_s=int(pushback) / 1e3)
        else:
            retryable = False
    return error_class(code, details.reason)(
        call.details() or code,
        code=code,
        reason=details.reason,
        metadata=details.metadata,
        violations=tuple(FieldViolation(*violation) for violation in details.violations),
        retryable=retryable,
        retry_after_s=details.retry_after_s,
        is_final=is_final,
        request_id=trailers.get(REQUEST_ID_TRAILER),
    )
