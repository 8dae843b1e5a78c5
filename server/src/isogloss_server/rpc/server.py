"""The grpc.aio server: options, services, port, stop."""

import asyncio
import errno
import logging
import socket
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from isogloss.v1 import embedding_pb2, embedding_pb2_grpc

from isogloss_server import system, tracing
from isogloss_server.clock import Clock
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.registry import Registry
from isogloss_server.errors import ListenError
from isogloss_server.rpc.call_memory import CallLimits, CallMemory
from isogloss_server.rpc.health import StandardHealth
from isogloss_server.rpc.interceptor import Access, CallInterceptor
from isogloss_server.rpc.reflection import add_reflection
from isogloss_server.rpc.service import EmbeddingService
from isogloss_server.rpc.stream import StreamWindow
from isogloss_server.security.keys import KeyRing
from isogloss_server.security.quotas import Quotas
from isogloss_server.security.tls import Certificates
from isogloss_server.settings.declarations import Settings

SERVICE = embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name
CLOSE_S = 0.5  # time for the peers of idle connections to learn that the server closes them
MAX_REFUSAL_S = 1.0  # time for callers to notice that the server is stopping, before connections are closed
LAST_STATUS_S = 0.2  # time for the statuses of calls that are ended to arrive
# Calls that have arrived and have not begun, of each method: about 11 KiB each. Beyond it, gRPC cancels calls without a
# reason; by default, beyond about 1,000.
MAX_PENDING_CALLS = 1 << 15
NO_LIMIT_MS = 2**31 - 1
HANDSHAKE_S = 20.0  # time for TLS, and for the first bytes of HTTP/2
KEEPALIVE_S = 60.0  # without traffic, after which a peer is asked whether it is there
KEEPALIVE_TIMEOUT_S = 20.0  # time for its response
# Between the pings of a client that has no calls; at the third that comes sooner, the connection is closed.
PING_INTERVAL_S = 10.0
MAX_METADATA_BYTES = 16 * 1024  # of one call, counted as HTTP/2 does: names, values, and 32 bytes for each
GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")
ROOM_BYTES = 1024 * 1024  # space in a message for everything except texts and vectors


def options(settings: Settings) -> list[tuple[str, int]]:
    """Returns the channel arguments of the server."""
    return [
        ("grpc.so_reuseport", 0),  # otherwise a second server silently binds the same port
        ("grpc.max_receive_message_length", max_message_bytes(settings)),
        ("grpc.max_send_message_length", settings.max_response_bytes + ROOM_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # By default twice the limit above; between the two, gRPC refuses calls at random.
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", _milliseconds(HANDSHAKE_S)),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _milliseconds(PING_INTERVAL_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _milliseconds(KEEPALIVE_S)),  # closes connections whose peer has vanished
        ("grpc.keepalive_timeout_ms", _milliseconds(KEEPALIVE_TIMEOUT_S)),
        ("grpc.http2.ping_timeout_ms", _milliseconds(KEEPALIVE_TIMEOUT_S)),  # without it, gRPC waits for a minute
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_connection_calls),
        # By default, gRPC refuses calls also below that number, if earlier ones have ended only for their caller.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.connection_idle_s)),
        ("grpc.max_connection_age_ms", _milliseconds(settings.connection_age_s)),
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    ]


def _milliseconds(limit_s: float) -> int:
    """Returns a time limit as gRPC counts it; 0 is none."""
    return round(limit_s * 1e3) or NO_LIMIT_MS


def max_message_bytes(settings: Settings) -> int:
    """Returns the largest request that gRPC reads: twice the limit, so that the error can name the limit."""
    return 2 * settings.max_request_bytes + ROOM_BYTES


class Server:
    """Serves a pipeline over gRPC on one address."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        pipeline: Pipeline,
        executor: Executor,
        clock: Clock,
        *,
        keys: KeyRing | None = None,
        quotas: Quotas | None = None,
        certificates: Certificates | None = None,
        tracer: tracing.Tracer | None = None,
    ) -> None:
        """Creates a server that does not listen yet.

        Without `keys`, everybody may call; without `certificates`, it serves plain text.
        """
        limits = CallLimits(
            max_bytes=settings.max_call_bytes,
            max_message_bytes=max_message_bytes(settings),
            request_timeout_s=settings.request_timeout_s,
            response_timeout_s=settings.response_timeout_s,
        )
        self._memory = CallMemory(limits, clock)
        self._certificates = certificates
        access = Access(
            keys=keys,
            quotas=quotas or Quotas(clock),
            open_health=settings.open_health,
            open_reflection=settings.open_reflection,
            client_certificates=settings.tls_client_ca is not None,
        )
        self._calls = CallInterceptor(
            SERVICE, clock, self._memory, access, access_log=settings.access_log, tracer=tracer
        )
        GRPC_LOG.addFilter(_is_problem)
        self._settings = settings
        self._grpc = grpc.aio.server(interceptors=[self._calls], options=options(settings))
        self._health = StandardHealth(registry, SERVICE)
        window = StreamWindow(settings.stream_window_requests, settings.stream_window_bytes)
        service = EmbeddingService(registry, pipeline, executor, clock, window, self._memory, access=access)
        self._streams = service.streams
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(service, self._grpc)
        self._grpc.add_registered_method_handlers(SERVICE, {"Health": health_handler(service)})
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        add_reflection((SERVICE, health.SERVICE_NAME), self._grpc)

    async def start(self) -> int:
        """Starts to listen; returns the port.

        Raises:
            ListenError: the address is in use, not local, or not permitted.
        """
        host, port = self._settings.host, self._settings.port
        check_free(host, port)
        address = system.address(host, port)
        try:
            if self._certificates is None:
                bound = self._grpc.add_insecure_port(address)
            else:
                bound = self._grpc.add_secure_port(address, self._certificates.credentials())
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {address}: {error}") from error
        await self._grpc.start()
        self._memory.start()
        return bound

    async def stop(self, grace_s: float | None) -> None:
        """Refuses new calls, ends watches and streams, and ends calls in progress after `grace_s` seconds.

        Both are answered with DRAINING. None ends calls at once. Otherwise callers have MAX_REFUSAL_S at most to notice
        that the server is stopping, even if `grace_s` is less. Returns when no call is in flight: gRPC would also wait
        for connections without calls, to the end of `grace_s` if their peer does not respond.
        """
        end_s = asyncio.get_running_loop().time() + (grace_s or 0.0)
        self._health.end_watches()
        self._streams.end()
        self._calls.end_streams()
        if grace_s is not None:
            await self._calls.refuse_calls(MAX_REFUSAL_S)
        remaining_s = max(0.0, end_s - asyncio.get_running_loop().time())
        stopping = asyncio.ensure_future(self._grpc.stop(remaining_s + LAST_STATUS_S))
        idle = asyncio.ensure_future(self._calls.until_idle())
        await asyncio.wait({stopping, idle}, timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED)
        self._calls.end_calls()
        await asyncio.wait({stopping, idle}, timeout=LAST_STATUS_S, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await asyncio.wait({stopping}, timeout=CLOSE_S)
        if not stopping.done():
            await self._grpc.stop(None)
        await stopping
        self._memory.stop()


def _is_problem(record: logging.LogRecord) -> bool:
    """Returns False for the line that grpc.aio logs, as an error, if a caller disconnects while it is answered."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core")


def health_handler(service: EmbeddingService) -> "grpc.RpcMethodHandler[Any, Any]":
    """Returns the handler of Health, to be registered: registered methods do not wait behind the calls of others."""
    return grpc.unary_unary_rpc_method_handler(
        service.Health,
        request_deserializer=embedding_pb2.HealthRequest.FromString,
        response_serializer=embedding_pb2.HealthResponse.SerializeToString,
    )


def check_free(host: str, port: int) -> None:
    """Raises ListenError if the server cannot listen on the address; the kernel's error is clearer than gRPC's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except UnicodeError as error:
        raise ListenError(f"cannot listen on {system.address(host, port)}: invalid host name") from error
    except OSError as error:
        known = {errno.EADDRINUSE: "the port is in use", errno.EACCES: "the port needs more rights"}
        why = known.get(error.errno or 0, error.strerror)
        raise ListenError(f"cannot listen on {system.address(host, port)}: {why}") from error
