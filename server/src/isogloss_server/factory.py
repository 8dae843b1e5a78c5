"""Builds a served model from its source: a bundled name, a folder, a hub id, or a provider's model."""

import ipaddress
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.engine.admission import Admission, AdmissionLimits
from isogloss_server.engine.backlog import Backlog, Throughput
from isogloss_server.engine.batch_queue import BULK_PIECE_TOKENS, BULK_SHARE
from isogloss_server.engine.batcher import Batcher
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.local_embedder import BLOCK_CHARACTERS, LocalEmbedder
from isogloss_server.engine.monitoring import Report, ignore_report
from isogloss_server.engine.registry import ReadyModel, ServedModel
from isogloss_server.engine.request import Limits, default_max_texts
from isogloss_server.errors import (
    ModelFilesError,
    ProviderSetupError,
    SettingsError,
    StartupError,
    UnsupportedModelError,
    first_line,
)
from isogloss_server.models import layout, model_folder, static
from isogloss_server.models.interfaces import ModelCard
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.model_folder import ModelFolder
from isogloss_server.models.providers import catalog
from isogloss_server.models.providers.catalog import HostedModel
from isogloss_server.models.providers.embedder import ProviderEmbedder, ProviderLimits, probe
from isogloss_server.models.providers.errors import (
    LONG_TIMEOUT,
    RATE_LIMIT,
    TIMEOUT,
    UNAVAILABLE,
    UNREACHABLE,
    ProviderCallError,
)
from isogloss_server.models.providers.interface import Provider
from isogloss_server.settings.declarations import Settings
from isogloss_server.settings.sources import KEY_VARIABLES, connection_setup_failure, provider_key
from isogloss_server.system import usable_cores

T = TypeVar("T")
BLOCK_TOKENS = BLOCK_CHARACTERS // 4  # of a block of characters, about
CPU = "cpu"  # the device that every runtime supports
BATCHED_BULK_SLOTS = 256  # of a model with a batch queue: enough to fill it, and a bound of the memory they hold
START_BACKOFF_S = 1.0
READ_ATTEMPTS = 3  # of a folder whose files change while they are read
TRANSIENT = (UNAVAILABLE, UNREACHABLE, RATE_LIMIT, TIMEOUT, LONG_TIMEOUT)


def load(
    name: str,
    source: str,
    settings: Settings,
    executor: Executor,
    clock: Clock,
    report: Report = ignore_report,
) -> ReadyModel:
    """Loads a local model and runs its self-test.

    Args:
        name: The name that the model is served under.
        source: A bundled name, a folder, a known name or a hub id.
        settings: The server's settings.
        executor: The threads for tokenization and inline inference.
        clock: The server's clock.
        report: Receives the health of parts of the model; called from any thread.

    Raises:
        StartupError: The model cannot be loaded, or fails its self-test.
    """
    loaded = _as_startup_error(source, lambda: read_unchanged(source, settings))
    batcher, backlog = None, _local_backlog(loaded, settings)
    if loaded.batched:
        batcher = Batcher(
            loaded.model,
            dimensions=loaded.card.dimensions[0],
            threads=backlog.lanes,
            max_batch_tokens=settings.max_batch_tokens,
            clock=clock,
            watchdog_s=settings.watchdog_s,
            throughput=backlog.throughput,
            report=report,
            name=name,
            positions=loaded.positions,
        )
    embedder = LocalEmbedder(
        loaded.model,
        loaded.tokenizer,
        loaded.card,
        loaded.prompts,
        executor,
        clock,
        throughput=backlog.throughput,
        batcher=batcher,
        tolerance=loaded.tolerance,
        report=report,
    )
    try:
        _as_startup_error(source, lambda: embedder.verify(loaded.probes))
    except StartupError:
        embedder.close()
        raise
    loaded.release_pages()
    # Without a batch queue, a request for each thread, and one that follows without waiting for the event loop.
    bulk_slots = BATCHED_BULK_SLOTS if batcher else settings.worker_threads + 1
    limits = admission_limits(settings, bulk_slots=bulk_slots)
    admission = Admission(name, loaded.card, limits, clock, backlog, executor.comparisons)
    return ReadyModel(embedder, request_limits(settings, loaded.card), admission)


def _local_backlog(loaded: LoadedModel, settings: Settings) -> Backlog:
    """Returns the empty backlog of a local model, in tokens: of its batcher, or of the executor without one."""
    if not loaded.batched:
        throughput = Throughput(full_units=BLOCK_TOKENS / 16, memory_units=4 * BLOCK_TOKENS)
        return Backlog(throughput, lanes=settings.worker_threads, turn=BLOCK_TOKENS)
    return Backlog(
        Throughput(full_units=BULK_PIECE_TOKENS, memory_units=4 * settings.max_batch_tokens),
        lanes=loaded.threads or inference_threads(settings),
        turn=settings.max_batch_tokens,
        bulk_share=1 / BULK_SHARE,
    )


def read_unchanged(source: str, settings: Settings) -> LoadedModel:
    """Loads a model from files none of which has changed until the last one was read; tries again if some have.

    Raises:
        StartupError: No runtime supports the model, or its files are missing, damaged, or keep changing.
    """
    for _ in range(READ_ATTEMPTS):
        folder = model_folder.locate(source, settings.graph_cache_folder)
        failure = None
        try:
            loaded = read(folder, settings)
        except ModelFilesError as error:  # half a file may look damaged
            failure = error
        changed = folder.files.changed()
        if not changed:
            if failure is not None:
                raise failure
            return loaded
        logs.warning("model files changed while they were read", model=source, files=changed)
    raise ModelFilesError(
        f"the files of model {source} change while they are read: {', '.join(changed)}; "
        "start the server when they are complete"
    )


def read(folder: ModelFolder, settings: Settings) -> LoadedModel:
    """Loads a folder's model in the runtime that supports it: static, else the one of the setting `backend`.

    Only sentence-transformers uses the setting `device`, so with another device than the CPU, it is the runtime.

    Raises:
        StartupError: No runtime supports the model, or its files are missing or damaged.
        SettingsError: The backend does not support the device.
    """
    if layout.module_names(folder) in static.MODULES:
        if settings.device != CPU:
            logs.warning("static models run on the CPU", device=settings.device, folder=folder.path)
        return static.load(folder)
    if settings.device != CPU and settings.backend == "openvino":
        raise SettingsError(
            f"device {settings.device} requires the backend sentence-transformers: openvino runs on the CPU; "
            "set backend to auto or sentence-transformers"
        )
    if settings.backend == "sentence-transformers" or settings.device != CPU:
        return _sentence_transformers(folder, settings)
    try:
        return _openvino(folder, settings)
    except UnsupportedModelError as refused:
        if settings.backend == "openvino":
            raise
        try:
            return _sentence_transformers(folder, settings)
        except ModelFilesError as second:
            raise ModelFilesError(f"{refused}; {second}") from second


def _as_startup_error(source: str, work: Callable[[], T]) -> T:
    """Returns the result of `work`; turns unexpected exceptions of libraries into an error of one line."""
    try:
        return work()
    except (StartupError, SettingsError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is not an Exception
        logs.internal_error(error, model=source)
        raise unexpected_error(source, error) from error


def unexpected_error(source: str, error: BaseException) -> ModelFilesError:
    """Returns the error of one line for an exception that a library raised while it loaded or ran a model's files."""
    return ModelFilesError(f"cannot load model {source}: {type(error).__name__}: {first_line(error)}")


def inference_threads(settings: Settings) -> int:
    """Returns the number of batches of one model that run at the same time."""
    return settings.inference_threads or usable_cores()


# Runtimes are imported on first use: their imports take longer than the start of the server.
def _openvino(folder: ModelFolder, settings: Settings) -> LoadedModel:
    from isogloss_server.models.openvino.loader import Runtime, load  # noqa: PLC0415

    return load(folder, Runtime(precision=settings.precision, threads=inference_threads(settings)))


def _sentence_transformers(folder: ModelFolder, settings: Settings) -> LoadedModel:
    from isogloss_server.models.sentence_transformers import load  # noqa: PLC0415

    return load(folder, settings.device)


def admission_limits(settings: Settings, *, bulk_slots: int) -> AdmissionLimits:
    """Returns the bounds of one model's queue."""
    return AdmissionLimits(max_wait_s=settings.max_queue_s, max_bytes=settings.max_queue_bytes, bulk_slots=bulk_slots)


def request_limits(settings: Settings, card: ModelCard) -> Limits:
    """Returns the limits of one request of a model."""
    return Limits(
        max_texts=settings.max_texts or default_max_texts(card.dimensions[0]),
        max_request_bytes=settings.max_request_bytes,
        max_response_bytes=settings.max_response_bytes,
        max_pairs=settings.max_pairs,
    )


async def connect(
    model: ServedModel, source: str, settings: Settings, loader: Executor, clock: Clock, comparisons: Backlog
) -> ReadyModel:
    """Connects a provider's model, after one small call that checks key, model and width.

    If the provider is unavailable at the moment, a model of known dimensions starts DEGRADED, with an open circuit
    breaker; one of unknown dimensions is retried until `provider_timeout_s` has passed.

    Args:
        model: The model as the registry knows it; receives health reports.
        source: `PROVIDER:MODEL` or `PROVIDER:MODEL@URL`.
        settings: The server's settings.
        loader: A thread to import the provider's SDK on.
        clock: The server's clock.
        comparisons: The work of all comparisons.

    Raises:
        SettingsError: The key is missing, the model is unknown, or the URL is invalid.
        ProviderSetupError: The provider rejects the key or the model, or there is no response from the address.
    """
    hosted = catalog.resolve(source)
    key = provider_key(hosted.kind, settings)
    _check_key(hosted, key)
    provider = await loader.run(_client, hosted, key)  # importing an SDK takes a second
    try:
        dimensions, failure = await _first_call(source, hosted, provider, settings, clock)
    except BaseException:
        await provider.close()
        raise
    provider_limits = _provider_limits(hosted, settings)
    card = replace(hosted.card(dimensions), texts_per_call=provider_limits.max_texts)
    throughput = Throughput(full_units=1, memory_units=16)  # in calls to the provider
    embedder = ProviderEmbedder(
        model.name,
        provider,
        card,
        provider_limits,
        clock,
        on_health=partial(model.health.report_degraded, "provider"),
        on_call=partial(throughput.record, 1.0),
    )
    if failure is not None:
        embedder.breaker.open(failure.in_full)
    backlog = Backlog(throughput, lanes=settings.provider_calls, turn=1)
    limits = admission_limits(settings, bulk_slots=settings.provider_calls)
    admission = Admission(model.name, card, limits, clock, backlog, comparisons)
    return ReadyModel(embedder, request_limits(settings, card), admission)


async def _first_call(
    source: str, hosted: HostedModel, provider: Provider, settings: Settings, clock: Clock
) -> tuple[tuple[int, ...], ProviderCallError | None]:
    """Returns the dimensions that the model offers, and the failure if it is transient and the dimensions are known."""
    known = hosted.known.dimensions
    until_s = clock.monotonic_s() + settings.provider_timeout_s
    while True:
        remaining_s = until_s - clock.monotonic_s()
        try:
            width = await probe(provider, timeout_s=remaining_s, columns=known[0] if known else 0)
        except ProviderCallError as error:
            if known and error.kind in TRANSIENT:
                return known, error
            if error.kind not in TRANSIENT or clock.monotonic_s() + START_BACKOFF_S >= until_s:
                raise ProviderSetupError(f"cannot serve model {source}: {error.in_full}") from error
            await clock.sleep(START_BACKOFF_S)
        else:
            return known or (width,), None


def _provider_limits(hosted: HostedModel, settings: Settings) -> ProviderLimits:
    return ProviderLimits(
        max_texts=settings.provider_texts_per_call or hosted.max_texts,
        max_bytes=hosted.provider.max_bytes,
        calls=settings.provider_calls,
        texts_per_minute=settings.provider_texts_per_minute or hosted.texts_per_minute,
        timeout_s=settings.provider_timeout_s,
    )


def _check_key(hosted: HostedModel, key: SecretStr | None) -> None:
    variable, flag = KEY_VARIABLES[hosted.kind], f"--{hosted.kind}-key-file"
    if key is None and not hosted.url:
        raise SettingsError(f"{hosted.title} requires an API key for {hosted.model}: set {variable}, or {flag}")
    if key is not None and hosted.url and not _is_private(hosted.url):
        logs.warning("API key sent over an unencrypted connection", url=hosted.url, key=variable)


def _is_private(url: str) -> bool:
    """Returns True if traffic to the address is encrypted, or stays on this machine."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "https" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"


# SDKs are extras, and imported on first use.
def _client(hosted: HostedModel, key: SecretStr | None) -> Provider:
    try:
        if hosted.kind == "cohere":
            from isogloss_server.models.providers.cohere import Cohere  # noqa: PLC0415

            has_several = len(hosted.known.dimensions) > 1
            return Cohere(
                hosted.model,
                hosted.address,
                key,
                dimensions=hosted.known.dimensions[0] if has_several else None,
                title=hosted.title,
            )
        from isogloss_server.models.providers.openai import OpenAI  # noqa: PLC0415

        return OpenAI(
            hosted.model,
            hosted.address,
            key,
            title=hosted.title,
            input_types=hosted.provider.input_types,
            truncations=hosted.provider.truncations,
        )
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != hosted.provider.package:
            raise
        extra = f"pip install 'isogloss-server[{hosted.provider.package}]'"
        raise ProviderSetupError(f"{hosted.title} requires a package that is not installed: {extra}") from None
    except Exception as error:  # noqa: BLE001 - SDKs and HTTP libraries raise anything on the variables they read
        raise ProviderSetupError(f"cannot connect to {hosted.title}: {connection_setup_failure(error)}") from None
