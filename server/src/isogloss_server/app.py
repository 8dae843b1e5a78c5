"""The composition root: builds the parts, reports readiness, waits for a signal, drains, stops."""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from isogloss_server import factory, logs, metrics, system, tracing
from isogloss_server._version import __version__
from isogloss_server.clock import Clock, SystemClock
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.executor import Executor, WatchedExecutor
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.registry import Registry
from isogloss_server.engine.shared_cache import SharedCache
from isogloss_server.errors import CacheSetupError, ListenError, TracingSetupError
from isogloss_server.models.catalog import is_hosted
from isogloss_server.rpc.server import Server
from isogloss_server.security import tls
from isogloss_server.security.keys import KeyRing, check_security, warn_of_insecurities
from isogloss_server.security.quotas import Quotas, SharedBuckets
from isogloss_server.security.tls import Certificates
from isogloss_server.settings.declarations import Settings, model_name_and_source
from isogloss_server.settings.sources import printable

if TYPE_CHECKING:
    from isogloss_server.engine.redis_store import RedisQuotaStore, RedisStore

# With Python's default of 5 ms, numpy work on another thread would delay every call, health checks included.
SWITCH_INTERVAL_S = 0.0005
# Allocations between garbage collections: a call allocates hundreds of objects, few of them in cycles.
GC_THRESHOLD = 20_000


class StopSignals:
    """SIGTERM and SIGINT: the first signal starts the drain, the second stops the server at once."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        self.received.append(number)
        (self.second if self.first.is_set() else self.first).set()


@dataclass(frozen=True)
class Security:
    """Certificates of the server, keys of its callers, and their quotas."""

    certificates: Certificates | None
    keys: KeyRing | None
    quotas: Quotas

    @classmethod
    def load(cls, settings: Settings, clock: Clock) -> Self:
        """Reads the files that the settings name.

        Raises:
            CacheSetupError: Quotas are shared, and the package of Redis is missing.
            SettingsError: A file or a URL is invalid, or the required security is missing.
        """
        check_security(settings)
        certificates = tls.load(settings, clock)
        keys = None if settings.keys_file is None else KeyRing(settings.keys_file, clock)
        return cls(certificates, keys, _quotas(settings, clock))

    def start(self, served: Collection[str]) -> None:
        """Follows the files, and shares the quotas; takes the names of the served models."""
        if self.certificates is not None:
            self.certificates.start()
        if self.keys is not None:
            _warn_of_unserved_models(self.keys, served)
            self.keys.start()
        self.quotas.start()

    async def close(self) -> None:
        """Stops both."""
        if self.certificates is not None:
            self.certificates.close()
        if self.keys is not None:
            self.keys.close()
        await self.quotas.close()


async def serve(settings: Settings, clock: Clock | None = None) -> int:
    """Serves until a signal.

    Args:
        settings: The server's settings.
        clock: Replaces the machine's clock in tests.

    Returns:
        The exit status: 0 after a drain, 128 + signal if stopped at once.

    Raises:
        StartupError: The server cannot listen, or a model cannot be loaded.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    clock = clock or SystemClock()
    began_s = clock.monotonic_s()
    asyncio.get_running_loop().set_exception_handler(_log_unhandled_error)
    signals = StopSignals()
    sources = dict(map(model_name_and_source, settings.model))
    security = Security.load(settings, clock)
    registry = Registry(tuple(sources))
    executor = WatchedExecutor(settings.worker_threads, settings.watchdog_s, clock, registry.report)
    cache = _cache(settings, clock, partial(registry.report_degraded, "cache"))
    pipeline = Pipeline(registry, executor, clock, cache)
    tracer = _tracer() if settings.tracing else None
    server = Server(
        settings,
        registry,
        pipeline,
        executor,
        clock,
        keys=security.keys,
        quotas=security.quotas,
        certificates=security.certificates,
        tracer=tracer,
    )
    port = await server.start()
    warn_of_insecurities(settings)
    logs.info("starting", version=__version__, **printable(settings))
    logs.debug("listening", address=system.address(settings.host, port))
    try:
        _serve_metrics(settings, registry, clock, security.certificates)
        cache.start()
        security.start(sources)
        loading = asyncio.ensure_future(_load(registry, sources, settings, executor, clock))
        if not await _finished_before(loading, signals.first):
            logs.info("stopped while loading", signal=signals.received[0].name)
            return 0
        gc.collect()
        gc.set_threshold(GC_THRESHOLD)
        gc.freeze()  # loaded models stay: collections skip them
        with _port_file(settings.port_file, port):
            start_s = round(clock.monotonic_s() - began_s, 3)
            address = system.address(settings.host, port)
            logs.info("serving", address=address, start_s=start_s, memory_mb=system.resident_mb())
            await signals.first.wait()
            return await _drain(server, registry, settings, signals)
    finally:
        await server.stop(None)
        registry.close()
        await security.close()
        await cache.close()
        executor.close()
        if tracer is not None:
            tracer.close()


def _serve_metrics(settings: Settings, registry: Registry, clock: Clock, certificates: Certificates | None) -> None:
    if settings.metrics_port is None:
        return
    metrics.watch_tasks(asyncio.get_running_loop())
    metrics.DRAINING.set_function(lambda: registry.draining)
    context = None if certificates is None else certificates.context
    port = metrics.serve(settings.host, settings.metrics_port, clock, context)
    scheme = "http" if certificates is None else "https"
    logs.info("serving metrics", url=f"{scheme}://{system.address(settings.host, port)}/metrics")


async def _load(
    registry: Registry, sources: Mapping[str, str], settings: Settings, executor: Executor, clock: Clock
) -> None:
    with contextlib.closing(Executor(1)) as loader:  # models serve while later ones are still loading
        for model in registry.models:
            before_mb = system.anonymous_mb()
            source = sources[model.name]
            if is_hosted(source):
                model.serve(await factory.connect(model, source, settings, loader, clock, executor.comparisons))
            else:
                ready = await loader.run(
                    factory.load, model.name, source, settings, executor, clock, model.health.report
                )
                model.serve(ready)
            card = model.ready.embedder.card
            logs.info(
                "model ready",
                model=model.name,
                backend=card.backend,
                space=card.space_id,
                dimensions=card.dimensions[0],
                memory_mb=system.anonymous_mb() - before_mb,
            )


def _cache(settings: Settings, clock: Clock, on_health: Callable[[str], None]) -> Cache:
    """Returns the cache, with Redis behind it if its URL is set. redis-py is an extra, imported only then.

    Raises:
        CacheSetupError: The package is missing.
        SettingsError: The URL is invalid.
    """
    shared = None
    if settings.cache_redis_url is not None:
        url, ttl_s = settings.cache_redis_url.get_secret_value(), settings.cache_redis_ttl_s
        store = _redis_stores()[0](url, prefix=settings.cache_redis_prefix, ttl_s=ttl_s)
        shared = SharedCache(store, clock, timeout_s=settings.cache_redis_timeout_ms / 1e3, on_health=on_health)
    return Cache(
        clock,
        max_bytes=settings.cache_bytes,
        shared=shared,
        static_models=settings.cache_static,
        isolated=settings.cache_isolation,
    )


def _quotas(settings: Settings, clock: Clock) -> Quotas:
    """Returns the quotas, shared with other servers if there are keys and the URL of Redis is set.

    Raises:
        CacheSetupError: The package is missing.
        SettingsError: The URL is invalid.
    """
    if settings.keys_file is None or settings.cache_redis_url is None:
        return Quotas(clock)
    url = settings.cache_redis_url.get_secret_value()
    store = _redis_stores()[1](url, prefix=settings.cache_redis_prefix)
    return Quotas(clock, SharedBuckets(store, clock, timeout_s=settings.cache_redis_timeout_ms / 1e3))


def _redis_stores() -> tuple[type["RedisStore"], type["RedisQuotaStore"]]:
    """Returns the stores of vectors and of quotas; redis-py is an extra, imported only if it is used.

    Raises:
        CacheSetupError: The package is missing.
    """
    try:
        from isogloss_server.engine.redis_store import RedisQuotaStore, RedisStore  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        extra = "pip install 'isogloss-server[redis]'"
        raise CacheSetupError(f"cache_redis_url requires a package that is not installed: {extra}") from None
    return RedisStore, RedisQuotaStore


def _warn_of_unserved_models(keys: KeyRing, served: Collection[str]) -> None:
    """Logs the models in the scopes of keys that the server does not serve: a name may be misspelt."""
    scoped = {model for key in keys.keys for model in key.models or ()}
    if unserved := sorted(scoped.difference(served)):
        logs.warning("keys have models in their scopes that are not served", models=", ".join(unserved))


def _tracer() -> tracing.Tracer:
    """Returns the tracer. OpenTelemetry is an extra, imported only if calls are traced.

    Raises:
        TracingSetupError: The packages are missing, or a variable of OpenTelemetry is invalid.
    """
    try:
        from isogloss_server.opentelemetry_tracer import OpenTelemetryTracer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opentelemetry":
            raise
        extra = "pip install 'isogloss-server[tracing]'"
        raise TracingSetupError(f"tracing requires packages that are not installed: {extra}") from None
    try:
        return OpenTelemetryTracer()
    except Exception as error:
        cause = f"{type(error).__name__}; see the values of the variables OTEL_..."
        raise TracingSetupError(f"cannot set up tracing: {cause}") from error


async def _finished_before(work: "asyncio.Future[None]", event: asyncio.Event) -> bool:
    """Waits for `work` or `event`; returns True if `work` finished first, and raises its exception if it has one."""
    waiting = asyncio.ensure_future(event.wait())
    both: set[asyncio.Future[Any]] = {work, waiting}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    for task in both:
        task.cancel()
    if work.done() and not work.cancelled():
        work.result()
    return work.done() and not event.is_set()


async def _drain(server: Server, registry: Registry, settings: Settings, signals: StopSignals) -> int:
    """Drains: health is NOT_SERVING first, then new calls are rejected, then calls in flight finish."""
    logs.info("draining", signal=signals.received[0].name)
    registry.drain()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(signals.second.wait(), settings.drain_delay_s)
    stopping = asyncio.ensure_future(server.stop(settings.drain_s))
    if not await _finished_before(stopping, signals.second):
        await server.stop(None)
    at_once = signals.second.is_set()
    logs.info("stopped at once" if at_once else "stopped")
    return 128 + signals.received[-1] if at_once else 0


@contextlib.contextmanager
def _port_file(file: Path | None, port: int) -> Iterator[None]:
    """Keeps the port in a file, written atomically, while the server accepts calls.

    Raises:
        ListenError: The file cannot be written.
    """
    if file is None:
        yield
        return
    # In a new file that then gets the name: whatever has one of the names, such as a link, is not written to.
    partial_file = file.with_name(f"{file.name}.{secrets.token_hex(8)}.part")
    try:
        with partial_file.open("x", encoding="ascii") as stream:
            stream.write(f"{port}\n")
            own = os.fstat(stream.fileno())
        partial_file.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial_file.unlink()
        raise ListenError(f"cannot write the port file {file}: {error.strerror}") from error
    try:
        yield
    finally:
        try:
            if os.path.samestat(file.lstat(), own):  # else another server has replaced the file
                file.unlink()
        except OSError as error:
            logs.warning("cannot remove the port file", file=file, cause=error.strerror)


def _log_unhandled_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if error is not None:
        logs.internal_error(error)
