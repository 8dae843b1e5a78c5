"""Every metric: its name, unit and labels. No label ever holds anything of a text."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

from isogloss_server.errors import ListenError

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # process_resident_memory_bytes, process_open_fds, process_cpu_seconds_total ...

PROVIDER_CALLS = Counter(
    "isogloss_provider_calls",
    "HTTP calls to a provider, by what became of them: ok, or the reason of the error.",
    ["model", "outcome"],
    registry=REGISTRY,
)
PROVIDER_TEXTS = Counter("isogloss_provider_texts", "Texts that a provider embedded.", ["model"], registry=REGISTRY)
PROVIDER_BILLED_TOKENS = Counter(
    "isogloss_provider_billed_tokens", "Tokens that a provider bills, by its own figures.", ["model"], registry=REGISTRY
)
PROVIDER_RETRIES = Counter(
    "isogloss_provider_retries", "Calls to a provider that were made again.", ["model"], registry=REGISTRY
)
REFUSED_CALLS = Counter(
    "isogloss_refused_calls",
    "Calls and streams' requests for which there was no room or no time, by lane.",
    ["model", "priority"],
    registry=REGISTRY,
)
QUEUE_TOKENS = Gauge(
    "isogloss_queue_tokens", "Work that waits or is being computed, in tokens, estimated.", ["model"], registry=REGISTRY
)
CACHE_ROWS = Counter(
    "isogloss_cache_rows",
    "Rows that were looked for. memory: hit; joined, computed just then for another call or row of the same text; or "
    "miss. shared: hit; miss; bad, no value of this version.",
    ["level", "outcome"],
    registry=REGISTRY,
)
CACHE_BYTES = Gauge("isogloss_cache_bytes", "Memory that cached rows take, in bytes.", registry=REGISTRY)
CACHE_EVICTIONS = Counter(
    "isogloss_cache_evictions", "Rows that left memory to make room for others.", registry=REGISTRY
)
CACHE_SHARED_ERRORS = Counter(
    "isogloss_cache_shared_errors",
    "What the shared cache did not do. get: answer in time; set: keep rows; ping: answer a probe; drop: it lagged, and "
    "a call's rows were not written.",
    ["operation"],
    registry=REGISTRY,
)

TASKS = Gauge(
    "isogloss_tasks",
    "Tasks of the event loop that are not done; a quiet server has few, always as many.",
    registry=REGISTRY,
)


def watch_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Lets isogloss_tasks tell the tasks of a loop, counted whenever somebody reads the metrics."""
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))


def serve(host: str, port: int) -> int:
    """Serves all metrics in Prometheus' text format at /metrics, on a thread of its own; returns the port.

    Raises:
        ListenError: the address cannot be listened on.
    """
    try:
        server, _ = start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port} for metrics: {error.strerror}") from error
    return int(server.server_address[1])
