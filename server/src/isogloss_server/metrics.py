"""The metrics of the server: one table of their names, units and labels, and the HTTP server that publishes them."""

import asyncio
import contextlib
import functools
import platform
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from isogloss.wire.enums import Priority
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)

from isogloss_server import system
from isogloss_server._version import __version__
from isogloss_server.clock import Clock
from isogloss_server.errors import ListenError

MAX_CONNECTIONS = 16  # to the metrics, each with a thread; a further one closes the oldest
CONNECTION_S = 10.0  # from the start of a connection to its end
PREFIX = "isogloss_"
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TEXTS_OF_A_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS_OF_A_BATCH = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Statuses with which the server refuses what another server, moment or key may permit.
REFUSING_CODES = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED"})
UNKNOWN_METHOD = "unknown"
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # process_resident_memory_bytes, process_open_fds, process_cpu_seconds_total ...
GCCollector(registry=REGISTRY)
# The time of creation of each counter would nearly double the number of samples.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Row(NamedTuple):
    """A row of the table: the name in queries, without the suffixes of a histogram, the labels and the meaning."""

    section: str
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


TABLE: list[Row] = []  # from which docs/metrics.md is generated


class _Section:
    """Declares the metrics of one section of the table."""

    def __init__(self, title: str) -> None:
        self._title = title

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Returns a counter."""
        return Counter(self._declared(name, "counter", meaning, labels, "_total"), meaning, labels, registry=REGISTRY)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """Returns a gauge."""
        return Gauge(self._declared(name, "gauge", meaning, labels), meaning, labels, registry=REGISTRY)

    def info(self, name: str, meaning: str, *labels: str) -> Info:
        """Returns a gauge that is always 1, with facts as further labels."""
        return Info(self._declared(name, "info", meaning, labels, "_info"), meaning, labels, registry=REGISTRY)

    def histogram(self, name: str, meaning: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        """Returns a histogram whose buckets have these upper bounds."""
        full_name = self._declared(name, "histogram", meaning, labels)
        return Histogram(full_name, meaning, labels, registry=REGISTRY, buckets=buckets)

    def _declared(self, name: str, kind: str, meaning: str, labels: tuple[str, ...], suffix: str = "") -> str:
        TABLE.append(Row(self._title, f"{PREFIX}{name}{suffix}", kind, labels, meaning))
        return PREFIX + name


# The table. A caller chooses no value of a label: methods and reasons are those of the server, models those it serves.
_calls = _Section("Calls")
CALLS = _calls.counter(
    "calls",
    "Calls that have ended, by gRPC status code and reason of the error, which is empty if there is none. Calls of "
    "methods that the server does not have count together as method unknown.",
    "method",
    "code",
    "reason",
)
CALL_SECONDS = _calls.histogram(
    "call_duration_seconds", "Time from the headers of a call to its status.", "method", "code"
)
CALLS_IN_FLIGHT = _calls.gauge("calls_in_flight", "Calls that have begun and not ended.", "method")
STREAM_REQUESTS = _calls.counter(
    "stream_requests", "Answered requests of streams, by code and reason of each request.", "code", "reason"
)
STREAM_REQUEST_SECONDS = _calls.histogram(
    "stream_request_duration_seconds", "Time from reading a request of a stream to its response.", "code"
)
REFUSALS = _calls.counter(
    "refusals",
    "Calls, and requests of streams, refused at the moment or for this caller, by reason: those that ended with "
    "RESOURCE_EXHAUSTED, UNAVAILABLE, UNAUTHENTICATED or PERMISSION_DENIED.",
    "reason",
)
MEMORY_REFUSALS = _calls.counter(
    "memory_refusals", "Calls, and requests of streams, refused because all calls together held too much memory."
)
CALL_BYTES = _calls.gauge("call_bytes", "Memory that calls hold, as far as it is known, in bytes.")
CLOSED_CONNECTIONS = _calls.counter("closed_connections", "Connections closed because a response was not read in time.")

_requests = _Section("Requests and batches")
TEXTS = _requests.counter("texts", "Embedded texts, cached ones included.", "model", "priority")
TOKENS = _requests.counter(
    "tokens", "Tokens of the embedded texts; of a provider's model, those that it billed.", "model", "priority"
)
QUEUE_TOKENS = _requests.gauge(
    "queue_tokens",
    "Tokens of requests that wait or are being computed, estimated until they are known.",
    "model",
    "priority",
)
QUEUE_BYTES = _requests.gauge(
    "queue_bytes",
    "Memory of the texts, vectors and rows of requests that wait or are being computed, in bytes.",
    "model",
    "priority",
)
ADMISSION_REFUSALS = _requests.counter(
    "admission_refusals",
    "Calls, and requests of streams, refused because the queue was full or the deadline too near.",
    "model",
    "priority",
)
WAIT_SECONDS = _requests.histogram(
    "wait_seconds",
    "Time that a request waited: for admission, a thread, another request, or the rate limit of a provider.",
    "model",
    "priority",
)
TOKENIZATION_SECONDS = _requests.histogram(
    "tokenization_seconds", "Time in which texts of a request were tokenized.", "model"
)
INFERENCE_SECONDS = _requests.histogram(
    "inference_seconds", "Time in which batches, or calls to a provider, with texts of a request ran.", "model"
)
BATCH_TEXTS = _requests.histogram(
    "batch_texts", "Texts of a batch of a model that has a batch queue.", "model", buckets=TEXTS_OF_A_BATCH
)
BATCH_TOKENS = _requests.histogram(
    "batch_tokens", "Tokens of a batch, without padding.", "model", buckets=TOKENS_OF_A_BATCH
)
BATCH_POSITIONS = _requests.counter(
    "batch_positions",
    "Positions computed for the tokens of batches, padding included. Tokens divided by positions are the efficiency of "
    "the packing.",
    "model",
)
BATCH_SECONDS = _requests.histogram("batch_duration_seconds", "Time of inference of a batch.", "model")
BATCHER_THREADS = _requests.gauge("batcher_threads", "Batches of a model that run at a time, at most.", "model")

_models = _Section("Models and server")
MODEL_STATE = _models.gauge(
    "model_state",
    "1 for the state that a model is in, 0 for the others: starting, serving, degraded, not_serving. A drain does not "
    "change it.",
    "model",
    "state",
)
MODEL = _models.info("model", "1 for a loaded model, with its backend, space_id, revision and dimensions.", "model")
DRAINING = _models.gauge("draining", "1 after a stop signal, when health is NOT_SERVING, else 0.")
BUILD = _models.info("build", "1, with the version of the server and the python_version.")
TASKS = _models.gauge("tasks", "Unfinished asyncio tasks; constant when the server is idle.")
DROPPED_LOG_LINES = _models.counter(
    "log_dropped_lines", "Lines of the log that were dropped, because stderr was not read."
)

_cache = _Section("Cache")
CACHE_ROWS = _cache.counter(
    "cache_rows",
    "Rows looked up in the cache. Level memory: hit; joined (an in-flight request for the same text); miss. Level "
    "shared: hit; miss; bad (a value that is damaged or of another version).",
    "model",
    "level",
    "outcome",
)
CACHE_BYTES = _cache.gauge("cache_bytes", "Memory used by cached rows, in bytes.")
CACHE_EVICTIONS = _cache.counter("cache_evictions", "Rows evicted from memory.", "model")
CACHE_SHARED_ERRORS = _cache.counter(
    "cache_shared_errors",
    "Failed operations of the shared cache. get: look-ups; set: rows not stored; ping: probes; drop: calls whose rows "
    "were not written, because writing lagged.",
    "operation",
)
CACHE_SHARED_OPEN = _cache.gauge(
    "cache_shared_breaker_open", "1 while the shared cache is unavailable and not used, else 0."
)

_providers = _Section("Providers")
PROVIDER_CALLS = _providers.counter(
    "provider_calls", "HTTP calls to a provider, by outcome: ok, or the reason of the error.", "model", "outcome"
)
PROVIDER_CALL_SECONDS = _providers.histogram(
    "provider_call_duration_seconds", "Time of an HTTP call to a provider, also of one that fails.", "model"
)
PROVIDER_RETRIES = _providers.counter("provider_retries", "Retries of calls to a provider.", "model")
PROVIDER_TEXTS = _providers.counter("provider_texts", "Texts embedded by a provider.", "model")
PROVIDER_BILLED_TOKENS = _providers.counter(
    "provider_billed_tokens", "Tokens billed by a provider, as it reports them.", "model"
)
PROVIDER_OPEN = _providers.gauge(
    "provider_breaker_open", "1 while a provider fails and receives no calls but probes, else 0.", "model"
)

_security = _Section("Security")
TLS_NOT_AFTER = _security.gauge(
    "tls_certificate_not_after_timestamp_seconds",
    "Unix time at which the certificate of the server, or the first authority of clients, expires.",
    "certificate",
)
TLS_RELOADS = _security.counter(
    "tls_reloads",
    "Changes of the files of TLS, by outcome: ok, or failed, in which case the server keeps the certificate it has.",
    "outcome",
)
QUOTA_SHARED_ERRORS = _security.counter(
    "quota_shared_errors", "Failed operations of the quotas in Redis, after which the server counts alone."
)

REFUSALS.labels("OVERLOADED")  # 0 until the first one; likewise below
TLS_RELOADS.labels("failed")
BUILD.info({"version": __version__, "python_version": platform.python_version()})


class Outcomes:
    """Counts the calls of one method, or the requests of streams, by code and reason, and measures their time.

    Attributes:
        in_flight: Those that have begun and not ended.
    """

    __slots__ = ("_calls", "_children", "_labels", "_seconds", "in_flight")

    def __init__(self, calls: Counter, seconds: Histogram, *labels: str) -> None:
        """Takes the metrics, and the values of their labels before code and reason."""
        self.in_flight = 0
        self._calls = calls
        self._seconds = seconds
        self._labels = labels
        self._children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    @classmethod
    def of_method(cls, name: str) -> "Outcomes":
        """Returns those of a method that the server has, such as "Embed" or "grpc.health.v1.Health/Check"."""
        outcomes = cls(CALLS, CALL_SECONDS, name)
        CALLS_IN_FLIGHT.labels(name).set_function(lambda: outcomes.in_flight)
        for code, reason in (("OK", ""), ("INTERNAL", "INTERNAL")):
            outcomes._bound(
                code, reason
            )  # 0 until the first one: Prometheus sees its increase only from a value before
        return outcomes

    def ended(self, code: str, reason: str, seconds: float) -> None:
        """Counts one: the name of its status code, the reason of its error or an empty string, and its time."""
        calls, call_seconds = self._children.get((code, reason)) or self._bound(code, reason)
        calls.inc()
        call_seconds.observe(seconds)
        if reason and code in REFUSING_CODES:
            REFUSALS.labels(reason).inc()

    def _bound(self, code: str, reason: str) -> tuple[Counter, Histogram]:
        children = self._calls.labels(*self._labels, code, reason), self._seconds.labels(*self._labels, code)
        self._children[code, reason] = children
        return children


class ModelMetrics:
    """Counts the embedded texts of one model, and measures the stages of its requests."""

    __slots__ = ("_inference", "_texts", "_tokenization", "_tokens", "_wait")

    def __init__(self, model: str) -> None:
        """Takes the name that the model is served under."""
        self._texts = {priority: TEXTS.labels(model, priority.value) for priority in Priority}
        self._tokens = {priority: TOKENS.labels(model, priority.value) for priority in Priority}
        self._wait = {priority: WAIT_SECONDS.labels(model, priority.value) for priority in Priority}
        self._tokenization = TOKENIZATION_SECONDS.labels(model)
        self._inference = INFERENCE_SECONDS.labels(model)

    def embedded(self, priority: Priority, texts: int, tokens: int) -> None:
        """Counts embedded texts and their tokens."""
        self._texts[priority].inc(texts)
        self._tokens[priority].inc(tokens)

    def answered(self, priority: Priority, *, wait_s: float, tokenization_s: float, inference_s: float) -> None:
        """Records the seconds that one request spent in each stage."""
        self._wait[priority].observe(wait_s)
        self._tokenization.observe(tokenization_s)
        self._inference.observe(inference_s)


class BatchMetrics:
    """Measures the batches of one model; safe from any thread."""

    __slots__ = ("_positions", "_seconds", "_texts", "_tokens")

    def __init__(self, model: str, threads: int) -> None:
        """Takes the name that the model is served under, and the batches that run at a time."""
        BATCHER_THREADS.labels(model).set(threads)
        self._texts = BATCH_TEXTS.labels(model)
        self._tokens = BATCH_TOKENS.labels(model)
        self._positions = BATCH_POSITIONS.labels(model)
        self._seconds = BATCH_SECONDS.labels(model)

    def computed(self, texts: int, tokens: int, positions: int, seconds: float) -> None:
        """Records a batch: its texts and tokens, the positions that the runtime computed for them, and the time."""
        self._texts.observe(texts)
        self._tokens.observe(tokens)
        self._positions.inc(positions)
        self._seconds.observe(seconds)


@functools.cache  # a look-up in the library takes three times as long as the increment
def cache_rows(model: str, level: str, outcome: str) -> Counter:
    """Returns the counter of rows that were looked up in one level of the cache."""
    return CACHE_ROWS.labels(model, level, outcome)


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
