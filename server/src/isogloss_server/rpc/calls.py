"""What one call is known by while it is answered: its id, its deadline, and what its log line will tell."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(slots=True)
class Call:
    """One call of the EmbeddingService; `deadline_s` is a moment of the clock."""

    method: str
    request_id: str
    deadline_s: float
    texts: int = 0
    tokens: int = 0
    model: str = ""


CURRENT_CALL: ContextVar[Call] = ContextVar("current_call")
