"""grpc.health.v1 told from the registry, which the Health RPC is told from too, so that they agree."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from isogloss_server.engine.registry import Registry
from isogloss_server.models.interfaces import State
from isogloss_server.rpc.interceptor import Context

READY = frozenset({State.SERVING, State.DEGRADED})
Status = health_pb2.HealthCheckResponse


class StandardHealth(health_pb2_grpc.HealthServicer):
    """The empty name is liveness, the service's name the default model's readiness, a model's name its own."""

    def __init__(self, registry: Registry, service: str) -> None:
        self._registry = registry
        self._service = service
        self._changed = asyncio.Event()
        self._ended = False
        registry.on_change(self._wake)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Returns the status of one name; NOT_FOUND where nothing of that name is served."""
        status = self._status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "nothing of that name is served")
        return Status(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """Returns the status of every name."""
        names = ["", self._service, *(model.name for model in self._registry.models)]
        return health_pb2.HealthListResponse(statuses={name: Status(status=self._status(name)) for name in names})

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yields the status of one name now and whenever it changes, until the server stops taking calls."""
        told = None
        while not self._ended:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                yield Status(status=status)
                told = status
            await changed.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    def end_watches(self) -> None:
        """Ends every Watch: an open stream would hold the server's stop to the end of its grace."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, name: str) -> Any:
        if not name:
            return Status.SERVING
        models = {model.name: model for model in self._registry.models}
        model = self._registry.models[0] if name == self._service else models.get(name)
        if model is None:
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if self._registry.state(model) in READY else Status.NOT_SERVING
