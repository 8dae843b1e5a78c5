"""What the scripted server refuses with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Fault:
    """One refusal: a status, its details, and trailers."""

    code: grpc.StatusCode
    message: str = "scripted"
    details: Sequence[Message] = ()
    trailers: Sequence[tuple[str, str | bytes]] = ()

    def abort(self, context: Any) -> NoReturn:
        """Ends the call."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        own = [("grpc-status-details-bin", status.SerializeToString())][: len(self.details)]
        context.set_trailing_metadata([*own, *self.trailers])
        context.abort(self.code, self.message)


def refusal(
    reason: str, *fields: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT, **figures: str
) -> Fault:
    """Returns a fault with ErrorInfo, and BadRequest where fields are named."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="isogloss", metadata=figures)
    violations = [error_details_pb2.BadRequest.FieldViolation(field=f, description=f"{f} is wrong") for f in fields]
    bad_request = [error_details_pb2.BadRequest(field_violations=violations)] if violations else []
    return Fault(code, f"{', '.join(fields) or 'it'} is wrong", [info, *bad_request])
