"""The metrics of the server, with names, units and labels. No label holds a text of a caller."""

import asyncio
import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, make_wsgi_app

from isogloss_server import system
from isogloss_server.clock import Clock
from isogloss_server.errors import ListenError

MAX_CONNECTIONS = 16  # to the metrics, each with a thread; a further one closes the oldest
CONNECTION_S = 10.0  # from the start of a connection to its end
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # process_resident_memory_bytes, process_open_fds, process_cpu_seconds_total ...

PROVIDER_CALLS = Counter(
    "isogloss_provider_calls",
    "HTTP calls to a provider, by outcome: ok, or the reason of the error.",
    ["model", "outcome"],
    registry=REGISTRY,
)
PROVIDER_TEXTS = Counter("isogloss_provider_texts", "Texts embedded by a provider.", ["model"], registry=REGISTRY)
PROVIDER_BILLED_TOKENS = Counter(
    "isogloss_provider_billed_tokens", "Tokens billed by a provider, as it reports them.", ["model"], registry=REGISTRY
)
PROVIDER_RETRIES = Counter("isogloss_provider_retries", "Retries of calls to a provider.", ["model"], registry=REGISTRY)
REFUSED_CALLS = Counter(
    "isogloss_refused_calls",
    "Calls, and requests of streams, refused because the queue was full or the deadline too near, by priority.",
    ["model", "priority"],
    registry=REGISTRY,
)
QUEUE_TOKENS = Gauge(
    "isogloss_queue_tokens", "Estimated tokens of work that waits or is being computed.", ["model"], registry=REGISTRY
)
REFUSED_FOR_MEMORY = Counter(
    "isogloss_refused_for_memory",
    "Calls, and requests of streams, refused because all calls together held too much memory.",
    registry=REGISTRY,
)
CALL_BYTES = Gauge("isogloss_call_bytes", "Memory that calls hold, as far as it is known, in bytes.", registry=REGISTRY)
CLOSED_CONNECTIONS = Counter(
    "isogloss_closed_connections", "Connections closed because a response was not read in time.", registry=REGISTRY
)
CACHE_ROWS = Counter(
    "isogloss_cache_rows",
    "Rows looked up in the cache. memory: hit; joined (an in-flight request for the same text); miss. shared: hit; "
    "miss; bad (a value that is damaged or of another version).",
    ["level", "outcome"],
    registry=REGISTRY,
)
CACHE_BYTES = Gauge("isogloss_cache_bytes", "Memory used by cached rows, in bytes.", registry=REGISTRY)
CACHE_EVICTIONS = Counter("isogloss_cache_evictions", "Rows evicted from memory.", registry=REGISTRY)
CACHE_SHARED_ERRORS = Counter(
    "isogloss_cache_shared_errors",
    "Failed operations of the shared cache. get: look-ups; set: rows not stored; ping: probes; drop: calls whose rows "
    "were not written, because writing lagged.",
    ["operation"],
    registry=REGISTRY,
)

TLS_NOT_AFTER = Gauge(
    "isogloss_tls_certificate_not_after_timestamp_seconds",
    "Unix time at which the certificate of the server, or the first authority of clients, expires.",
    ["certificate"],
    registry=REGISTRY,
)
TLS_RELOADS = Counter(
    "isogloss_tls_reloads",
    "Changes of the files of TLS, by outcome: ok, or failed, in which case the server keeps the certificate it has.",
    ["outcome"],
    registry=REGISTRY,
)
QUOTA_SHARED_ERRORS = Counter(
    "isogloss_quota_shared_errors",
    "Failed operations of the quotas in Redis, after which the server counts alone.",
    registry=REGISTRY,
)

DROPPED_LOG_LINES = Counter(
    "isogloss_log_dropped_lines", "Lines of the log that were dropped, because stderr was not read.", registry=REGISTRY
)
TASKS = Gauge(
    "isogloss_tasks",
    "Unfinished asyncio tasks; constant when the server is idle.",
    registry=REGISTRY,
)


def watch_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Makes isogloss_tasks count the unfinished tasks of a loop at each scrape."""
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))


class MetricsServer(socketserver.ThreadingMixIn, WSGIServer):
    """Serves the metrics, one thread a connection; bounds the connections and the time of each."""

    daemon_threads = True

    def __init__(self, host: str, port: int, clock: Clock, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        """Listens on the address; raises OSError. With `tls`, each connection uses the context that it returns."""
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self._clock = clock
        self._tls = tls
        self._open: dict[socket.socket, float] = {}  # the connections in order, with the moment at which each expires
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(make_wsgi_app(REGISTRY))

    def server_bind(self) -> None:
        """Binds the socket, without a look-up of the host's name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection; the thread of the connection makes the handshake of TLS, with its first read."""
        connection, address = super().get_request()
        if self._tls is None:
            return connection, address
        try:
            return self._tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
        except OSError:  # the peer has closed the connection already
            connection.close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the thread of a connection; closes the oldest one if there are too many."""
        if len(self._open) >= MAX_CONNECTIONS:
            oldest, *_ = list(self._open)  # copied, since threads remove their connections
            self._close(oldest)
        self._open[request] = self._clock.monotonic_s() + CONNECTION_S
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Closes the connections that have expired; called twice a second."""
        now_s = self._clock.monotonic_s()
        for connection in [connection for connection, end_s in self._open.copy().items() if end_s <= now_s]:
            self._close(connection)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection, whose thread ends."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: a peer that closes its connection is not an error."""

    def _close(self, connection: socket.socket) -> None:
        """Makes the reads and writes of a connection's thread fail, so that it ends."""
        self._open.pop(connection, None)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS too, whose state its thread is using


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Does nothing: scrapes are not logged."""


def serve(host: str, port: int, clock: Clock, tls: Callable[[], ssl.SSLContext] | None = None) -> int:
    """Serves all metrics at /metrics, in Prometheus' text format, on threads of its own.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.
        clock: Bounds the time of a connection.
        tls: Returns the context of TLS for each new connection; None for plain text.

    Returns:
        The port.

    Raises:
        ListenError: The server cannot listen on the address.
    """
    try:
        server = MetricsServer(host, port, clock, tls)
    except OSError as error:
        where = system.address(host, port)
        raise ListenError(f"cannot listen on {where} for metrics: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)
