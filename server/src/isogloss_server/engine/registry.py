"""The models that are served, under their names, each with its state: what health tells and requests look up."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from isogloss_server import logs, metrics
from isogloss_server.engine.admission import Admission
from isogloss_server.engine.request import Limits
from isogloss_server.errors import ModelNotReadyError, UnknownModelError
from isogloss_server.models.interfaces import Embedder, Report, State


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model that can be asked: what computes its vectors, and what one request may ask for.

    `bulk_jobs` is how many BULK jobs work at once: one where each computes by itself, many where their texts meet in
    a queue that knows of lanes. `admission` is the room that work has to wait in.
    """

    embedder: Embedder
    limits: Limits
    bulk_jobs: int = 1
    admission: Admission = field(default_factory=Admission)


class ServedModel:
    """One model under its name: its state, and once loaded what computes its vectors."""

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        self.name = name
        self.state = State.STARTING
        self.detail = "loading"  # one line for people; empty where all is well
        self.queued_texts = 0  # of jobs that wait or work
        self.embedded_texts = 0  # since the server started
        self.bulk_turns = asyncio.Semaphore(0)  # of which each BULK job at work holds one
        self._ready: ReadyModel | None = None
        self._reported: dict[str, tuple[State, str]] = {}  # what is not well, by part
        self._changed = changed

    def serve(self, ready: ReadyModel) -> None:
        """Makes the model answer requests from now on."""
        self._ready = ready
        metrics.QUEUE_TOKENS.labels(self.name).set_function(lambda: ready.admission.tokens)
        self.bulk_turns = asyncio.Semaphore(ready.bulk_jobs)
        self._mark_worst()

    def reporter(self, part: str) -> Report:
        """Returns what a part of the model, such as "cache", tells its state by; to be called on the event loop.

        Health tells the worst of all parts, as soon as the model serves.
        """
        return partial(self._take_report, part)

    def _take_report(self, part: str, state: State, detail: str) -> None:
        if state is State.SERVING:
            if self._reported.pop(part, None) is not None:
                logs.info("model well again", model=self.name, part=part)
        else:
            self._reported[part] = state, detail
            logs.warning("model not well", model=self.name, part=part, state=state.name, why=detail)
        if self.is_loaded:
            self._mark_worst()

    def _mark_worst(self) -> None:
        worst = max((state for state, _ in self._reported.values()), default=State.SERVING)
        self.mark(worst, "; ".join(detail for state, detail in self._reported.values() if state is worst))

    def mark(self, state: State, detail: str) -> None:
        """Sets the state that health tells, and the line that explains it."""
        self.state, self.detail = state, detail
        self._changed()

    @property
    def is_loaded(self) -> bool:
        """Whether the model can be asked."""
        return self._ready is not None

    @property
    def ready(self) -> ReadyModel:
        """What answers requests.

        Raises:
            ModelNotReadyError: the model is not loaded.
        """
        if self._ready is None:
            raise ModelNotReadyError(f"model {self.name!r} is not ready: {self.detail}", model=self.name)
        return self._ready


class Registry:
    """All models served, the default first."""

    def __init__(self, names: Sequence[str]) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._models = {name: ServedModel(name, self._notify) for name in names}
        self.draining = False

    @property
    def models(self) -> list[ServedModel]:
        """The models, the default first."""
        return list(self._models.values())

    @property
    def ready_models(self) -> list[ServedModel]:
        """The models that are loaded, the default first where it is.

        Raises:
            ModelNotReadyError: none is.
        """
        loaded = [model for model in self.models if model.is_loaded]
        if not loaded:
            raise ModelNotReadyError("no model is ready yet")
        return loaded

    def get(self, name: str) -> ServedModel:
        """Returns the model of that name, or the default where the name is empty.

        Raises:
            UnknownModelError: no model of that name is served.
        """
        model = self._models.get(name) if name else self.models[0]
        if model is None:
            served = ", ".join(self._models)
            raise UnknownModelError(f"no such model; served are {served}", field="model", served=served)
        return model

    def state(self, model: ServedModel) -> State:
        """Returns what health tells of a model: from the beginning of a drain, NOT_SERVING."""
        return State.NOT_SERVING if self.draining else model.state

    def drain(self) -> None:
        """Tells that the server is about to stop; requests are still answered."""
        self.draining = True
        self._notify()

    def close(self, wait_s: float = 0.0) -> None:
        """Closes every model that is loaded; waits `wait_s` seconds at most for each."""
        for model in self.models:
            if model.is_loaded:
                model.ready.embedder.close(wait_s)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever what health tells may have changed."""
        self._listeners.append(listener)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
