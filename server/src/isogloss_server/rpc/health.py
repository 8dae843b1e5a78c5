"""grpc.health.v1: reports the states of the registry, like the Health RPC, so that both agree."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from isogloss_server.engine.monitoring import State
from isogloss_server.engine.registry import Registry
from isogloss_server.errors import DrainingError, UnknownServiceError
from isogloss_server.rpc.interceptor import CallContext

READY = frozenset({State.SERVING, State.DEGRADED})
Status = health_pb2.HealthCheckResponse


class StandardHealth(health_pb2_grpc.HealthServicer):
    """Health by name: empty is liveness, the service is readiness of the default model, a model's name is its own.

    Its methods receive a CallContext. A caller sees only the models that it may use.
    """

    def __init__(self, registry: Registry, service: str) -> None:
        self._registry = registry
        self._service = service
        self._changed = asyncio.Event()
        self._ended = False
        registry.on_change(self._wake)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """Returns the status of one name; NOT_FOUND for an unknown name."""
        status = self._status(request.service, context.key.models)
        if status == Status.SERVICE_UNKNOWN:
            raise UnknownServiceError("unknown service; health has the names in its method List", field="service")
        return Status(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: CallContext) -> health_pb2.HealthListResponse:
        """Returns the status of every name that the caller may see."""
        allowed = context.key.models
        names = ["", self._service, *(model.name for model in self._registry.visible(allowed))]
        statuses = {name: Status(status=self._status(name, allowed)) for name in names}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yields the status of one name, now and after each change, until the server stops accepting calls."""
        sent = None
        while not self._ended:
            changed = self._changed
            status = self._status(request.service, context.key.models)
            if status != sent:
                yield Status(status=status)
                sent = status
            await changed.wait()
        raise DrainingError("the server is stopping")

    def end_watches(self) -> None:
        """Ends every Watch: an open stream would delay the stop of the server to the end of its grace period."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, name: str, allowed: Collection[str] | None) -> Any:
        if not name:
            return Status.SERVING
        model = self._registry.models[0] if name == self._service else self._registry.find(name, allowed)
        if model is None:
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if self._registry.state(model) in READY else Status.NOT_SERVING
