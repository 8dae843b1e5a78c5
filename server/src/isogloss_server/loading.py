"""One model, from its name or folder to what answers requests: files, runtime, embedder, start-up checks."""

from collections.abc import Callable
from typing import TypeVar

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.cores import usable_cores
from isogloss_server.engine.admission import Admission
from isogloss_server.engine.batcher import Batcher
from isogloss_server.engine.lanes import QUEUED_BULK_JOBS
from isogloss_server.engine.limits import Limits, default_max_texts
from isogloss_server.engine.local import LocalEmbedder
from isogloss_server.engine.registry import Ready
from isogloss_server.engine.vitals import Reporter, to_nobody
from isogloss_server.engine.workers import Workers
from isogloss_server.errors import ModelFilesError, StartupError, UnsupportedModelError
from isogloss_server.models import layout, static, weights
from isogloss_server.models.base import ModelCard
from isogloss_server.models.parts import Parts
from isogloss_server.models.weights import ModelFolder
from isogloss_server.settings import Settings

T = TypeVar("T")


def load(source: str, settings: Settings, workers: Workers, clock: Clock, reporter: Reporter = to_nobody) -> Ready:
    """Returns a model ready to be asked: loaded, run once, and its vectors held against known ones.

    What `reporter` gives is called from any thread.

    Raises:
        StartupError: it cannot be loaded, or does not compute what it should.
    """
    parts = _told(source, lambda: read(weights.locate(source), settings))
    batcher = None
    if parts.batched:
        batcher = Batcher(
            parts.model,
            dimensions=parts.card.dimensions[0],
            threads=parts.threads or inference_threads(settings),
            max_batch_tokens=settings.max_batch_tokens,
            clock=clock,
            watchdog_s=settings.watchdog_s,
            reporter=reporter,
        )
    embedder = LocalEmbedder(
        parts.model,
        parts.tokens,
        parts.card,
        parts.prompts,
        workers,
        clock,
        batcher=batcher,
        tolerance=parts.tolerance,
        reporter=reporter,
    )
    try:
        _told(source, lambda: embedder.verify(parts.probes))
    except StartupError:
        embedder.close()
        raise
    parts.give_back()
    return Ready(
        embedder,
        limits_of(settings, parts.card),
        bulk_jobs=QUEUED_BULK_JOBS if batcher else 1,
        admission=admission_of(settings),
    )


def read(folder: ModelFolder, settings: Settings) -> Parts:
    """Returns a folder's model in the runtime that computes it: static, else what `backend` says.

    Raises:
        StartupError: none does, or the files are damaged.
    """
    if layout.module_names(folder) in static.MODULES:
        return static.load(folder)
    if settings.backend == "sentence-transformers":
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


def _told(source: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns; what a library raises about a model becomes the one line that an operator reads."""
    try:
        return work()
    except StartupError:
        raise
    except Exception as error:
        logs.fault(error, model=source)
        first = str(error).partition("\n")[0]
        raise ModelFilesError(f"model {source} cannot be loaded: {type(error).__name__}: {first}") from error


def inference_threads(settings: Settings) -> int:
    """Returns how many batches of one model are computed at a time."""
    return settings.inference_threads or usable_cores()


# Each runtime is imported only where it is wanted: they take longer to import than the server to start.
def _openvino(folder: ModelFolder, settings: Settings) -> Parts:
    from isogloss_server.models.openvino.load import Runtime, load  # noqa: PLC0415

    runtime = Runtime(
        precision=settings.precision, threads=inference_threads(settings), graph_cache=settings.graph_cache_folder
    )
    return load(folder, runtime)


def _sentence_transformers(folder: ModelFolder, settings: Settings) -> Parts:
    from isogloss_server.models.sentence_transformers import load  # noqa: PLC0415

    return load(folder, settings.device)


def admission_of(settings: Settings) -> Admission:
    """Returns the room that one model's work has to wait in."""
    return Admission(settings.max_queue_tokens, settings.max_queue_bytes)


def limits_of(settings: Settings, card: ModelCard) -> Limits:
    """Returns what one request of a model may ask for."""
    return Limits(
        max_texts=settings.max_texts or default_max_texts(card.dimensions[0]),
        max_request_bytes=settings.max_request_bytes,
        max_response_bytes=settings.max_response_bytes,
        max_pairs=settings.max_pairs,
    )
