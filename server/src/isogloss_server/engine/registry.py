"""Registry of the served models, each with its health."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from isogloss.wire.enums import Priority

from isogloss_server import metrics
from isogloss_server.engine.admission import Admission
from isogloss_server.engine.monitoring import HealthReporter, State
from isogloss_server.engine.request import Limits
from isogloss_server.errors import ModelNotReadyError, UnknownModelError
from isogloss_server.models.interfaces import Embedder


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A loaded model: its embedder, the limits of one request, and the admission to its queue."""

    embedder: Embedder
    limits: Limits
    admission: Admission


class ServedModel:
    """One model under its name: its health, and its embedder once it is loaded.

    Attributes:
        name: The name in requests.
        health: Receives the states of the model's parts.
        metrics: Counts the model's texts, and measures its requests.
        embedded_texts: Texts embedded since the server started, cached ones included.
    """

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.name = name
        self.health = HealthReporter(name, on_change)
        self.metrics = metrics.ModelMetrics(name)
        self.embedded_texts = 0
        self._ready: ReadyModel | None = None
        for state in State:
            metrics.MODEL_STATE.labels(name, state.name.lower()).set_function(partial(self._is_in, state))

    def serve(self, ready: ReadyModel) -> None:
        """Accepts requests for the model from now on."""
        self._ready = ready
        for priority in Priority:
            queued_tokens = partial(ready.admission.queued_tokens, priority)
            metrics.QUEUE_TOKENS.labels(self.name, priority.value).set_function(queued_tokens)
            queued_bytes = partial(ready.admission.queued_bytes, priority)
            metrics.QUEUE_BYTES.labels(self.name, priority.value).set_function(queued_bytes)
        card = ready.embedder.card
        metrics.MODEL.labels(self.name).info(
            {
                "backend": card.backend,
                "space_id": card.space_id,
                "revision": card.revision,
                "dimensions": str(card.dimensions[0]),
            }
        )
        self.health.start_serving()

    def _is_in(self, state: State) -> bool:
        return self.health.state is state

    @property
    def queued_texts(self) -> int:
        """Texts of requests that wait or are computed."""
        return self._ready.admission.texts if self._ready else 0

    @property
    def is_loaded(self) -> bool:
        """True if requests for the model are accepted."""
        return self._ready is not None

    @property
    def ready(self) -> ReadyModel:
        """The loaded model.

        Raises:
            ModelNotReadyError: the model is not loaded.
        """
        if self._ready is None:
            raise ModelNotReadyError(f"model {self.name!r} is not ready: {self.health.detail}", model=self.name)
        return self._ready


class Registry:
    """All served models, the default first."""

    def __init__(self, names: Sequence[str]) -> None:
        """Registers models before they are loaded; call it on the event loop if threads report their health."""
        self._listeners: list[Callable[[], None]] = []
        self._models = {name: ServedModel(name, self._notify) for name in names}
        self.draining = False

    @property
    def models(self) -> list[ServedModel]:
        """The models, the default first."""
        return list(self._models.values())

    def visible(self, allowed: Collection[str] | None) -> list[ServedModel]:
        """Returns the models that a caller may use, its default first; `allowed` are their names, or None for all."""
        return [model for model in self.models if allowed is None or model.name in allowed]

    def ready_models(self, allowed: Collection[str] | None = None) -> list[ServedModel]:
        """Returns the loaded models that a caller may use, its default first if it is loaded; see `visible`.

        Raises:
            ModelNotReadyError: none of them is loaded.
            UnknownModelError: the caller may use none of the served models.
        """
        self.get("", allowed)
        loaded = [model for model in self.visible(allowed) if model.is_loaded]
        if not loaded:
            raise ModelNotReadyError("no model is ready yet")
        return loaded

    def get(self, name: str, allowed: Collection[str] | None = None) -> ServedModel:
        """Returns the model of that name, or the caller's default if the name is empty; see `visible`.

        Raises:
            UnknownModelError: no model of that name is served, or the caller may not use it.
        """
        model = self.find(name, allowed)
        if model is None:
            served = ", ".join(model.name for model in self.visible(allowed))
            raise UnknownModelError(f"unknown model; served: {served or 'none'}", field="model", served=served)
        return model

    def find(self, name: str, allowed: Collection[str] | None = None) -> ServedModel | None:
        """Returns the model of that name, or the caller's default if the name is empty; None if it has none."""
        if not name:
            return next(iter(self.visible(allowed)), None)
        return self._models.get(name) if allowed is None or name in allowed else None

    def state(self, model: ServedModel) -> State:
        """Returns the state that health services report for a model: NOT_SERVING while the server drains."""
        return State.NOT_SERVING if self.draining else model.health.state

    def report(self, part: str, state: State, detail: str) -> None:
        """Reports a part that all models share, such as the cache; see HealthReporter."""
        for model in self.models:
            model.health.report(part, state, detail)

    def report_degraded(self, part: str, detail: str) -> None:
        """Reports a part that all models share as DEGRADED, or as SERVING if `detail` is empty; see HealthReporter."""
        for model in self.models:
            model.health.report_degraded(part, detail)

    def drain(self) -> None:
        """Reports NOT_SERVING for every model; the server still processes requests."""
        self.draining = True
        self._notify()

    def close(self, wait_s: float = 0.0) -> None:
        """Closes every loaded model; waits at most `wait_s` seconds for each."""
        for model in self.models:
            if model.is_loaded:
                model.ready.embedder.close(wait_s)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever the state of a model may have changed."""
        self._listeners.append(listener)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
