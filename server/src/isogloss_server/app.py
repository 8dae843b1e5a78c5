"""The composition root: builds the parts, reports readiness, waits for a signal, drains, stops."""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from isogloss_server import factory, logs, metrics, system
from isogloss_server.clock import Clock, SystemClock
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.executor import Executor, WatchedExecutor
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.registry import Registry
from isogloss_server.engine.shared_cache import SharedCache
from isogloss_server.errors import CacheSetupError, ListenError
from isogloss_server.models.catalog import is_hosted
from isogloss_server.rpc.server import Server
from isogloss_server.settings.declarations import Settings, model_name_and_source

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
    registry = Registry(tuple(sources))
    executor = WatchedExecutor(settings.worker_threads, settings.watchdog_s, clock, registry.report)
    cache = _cache(settings, clock, partial(registry.report_degraded, "cache"))
    server = Server(settings, registry, Pipeline(registry, executor, clock, cache), executor, clock)
    port = await server.start()
    logs.debug("listening", address=system.address(settings.host, port))
    try:
        if settings.metrics_port is not None:
            metrics.watch_tasks(asyncio.get_running_loop())
            metrics_port = metrics.serve(settings.host, settings.metrics_port, clock)
            logs.info("serving metrics", url=f"http://{system.address(settings.host, metrics_port)}/metrics")
        cache.start()
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
        await cache.close()
        executor.close()


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
        try:
            from isogloss_server.engine.redis_store import RedisStore  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "redis":
                raise
            extra = "pip install 'isogloss-server[redis]'"
            raise CacheSetupError(f"cache_redis_url requires a package that is not installed: {extra}") from None
        url, ttl_s = settings.cache_redis_url.get_secret_value(), settings.cache_redis_ttl_s
        store = RedisStore(url, prefix=settings.cache_redis_prefix, ttl_s=ttl_s)
        shared = SharedCache(store, clock, timeout_s=settings.cache_redis_timeout_ms / 1e3, on_health=on_health)
    return Cache(
        clock,
        max_bytes=settings.cache_bytes,
        shared=shared,
        static_models=settings.cache_static,
        isolated=settings.cache_isolation,
    )


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
