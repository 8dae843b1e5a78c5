"""What is not a domain error becomes one here: bytes that are no message, and faults of the server."""

import uuid
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from isogloss_server import logs
from isogloss_server.errors import DomainError, MalformedRequestError, UnforeseenError
from isogloss_server.rpc.calls import Call

T = TypeVar("T")


def parsed(read: Callable[[bytes], T], request: bytes) -> T:
    """Returns the message in `request`; read here, since grpc.aio would answer UNKNOWN where it is none.

    Raises:
        MalformedRequestError: the bytes are no message of the contract.
    """
    try:
        return read(request)
    except DecodeError:
        raise MalformedRequestError("the request's bytes are no message of the contract") from None


def domain_error(error: Exception, call: Call) -> DomainError:
    """Returns a domain error itself; any other is logged under an opaque id, which is all that the caller learns."""
    if isinstance(error, DomainError):
        return error
    fault_id = uuid.uuid4().hex
    logs.fault(error, fault_id=fault_id, request_id=call.request_id, method=call.method)
    return UnforeseenError(f"a fault of the server; its log has it under {fault_id}", id=fault_id)
