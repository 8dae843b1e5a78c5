"""The metrics of the server, with names, units and labels. No label holds a text of a caller."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

from isogloss_server.errors import ListenError

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

TASKS = Gauge(
    "isogloss_tasks",
    "Unfinished asyncio tasks; constant when the server is idle.",
    registry=REGISTRY,
)


def watch_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Makes isogloss_tasks count the unfinished tasks of a loop at each scrape."""
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))


def serve(host: str, port: int) -> int:
    """Serves all metrics at /metrics, in Prometheus' text format, on a thread of its own.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.

    Returns:
        The port.

    Raises:
        ListenError: The server cannot listen on the address.
    """
    try:
        server, _ = start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port} for metrics: {error.strerror}") from error
    return int(server.server_address[1])
