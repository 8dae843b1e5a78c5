"""Every knob once, with unit, default, range and help; service_knobs.py has those of queue, cache and providers."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import FiniteFloat, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from isogloss_server.models.weights import BUNDLED
from isogloss_server.settings.file import readable
from isogloss_server.settings.knob import knob
from isogloss_server.settings.model_names import model_name_and_source
from isogloss_server.settings.service_knobs import ServiceKnobs

PREFIX = "ISOGLOSS_"
HIGHEST_MAX_TEXTS = 50_000
OFF = "off"


class Settings(ServiceKnobs):
    """What `isogloss-server serve` can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    config: Path | None = knob(None, "TOML file with settings under these names", section="address", unit="FILE")
    host: str = knob(
        "127.0.0.1", "address to listen on; 0.0.0.0 or :: for all of the machine's", section="address", unit="HOST"
    )
    port: int = knob(50051, "port to listen on; 0 takes a free one", section="address", unit="PORT", ge=0, le=65_535)
    port_file: Path | None = knob(
        None, "file to write the port to once ready; removed at the end", section="address", unit="FILE"
    )
    model: Annotated[tuple[str, ...], NoDecode] = knob(
        (BUNDLED,),
        f"model to serve: {BUNDLED} (bundled), a name that `models list` tells, a hub id, a folder in the "
        "sentence-transformers layout, cohere:MODEL, openai:MODEL or openai:MODEL@URL, optionally NAME=MODEL; may be "
        "given more than once (in the environment: parted by commas), the first is the default",
        section="models",
        unit="MODEL",
    )
    max_texts: int = knob(
        0,
        "texts of one request; 0 = as many float32 vectors as fit 4 MiB",
        section="limits",
        unit="TEXTS",
        ge=0,
        le=HIGHEST_MAX_TEXTS,
    )
    max_request_bytes: int = knob(
        4 * 1024**2, "UTF-8 text and vectors of one request", section="limits", unit="BYTES", ge=1024, le=256 * 1024**2
    )
    max_response_bytes: int = knob(
        16 * 1024**2, "one answer", section="limits", unit="BYTES", ge=1024, le=512 * 1024**2
    )
    max_pairs: int = knob(
        4 * 1024**2, "queries x candidates of one Similarity", section="limits", unit="PAIRS", ge=1, le=10**9
    )
    stream_window_requests: int = knob(
        32,
        "requests of one stream that may be unanswered before no more are read",
        section="limits",
        unit="REQUESTS",
        ge=1,
        le=10_000,
    )
    stream_window_bytes: int = knob(
        16 * 1024**2,
        "likewise, bytes of requests and of answers not yet sent",
        section="limits",
        unit="BYTES",
        ge=1024,
        le=1024**3,
    )
    worker_threads: int = knob(
        2,
        "threads for tokenisation, comparison, and the bundled model",
        section="models",
        unit="THREADS",
        ge=1,
        le=256,
    )
    backend: Literal["auto", "openvino", "sentence-transformers"] = knob(
        "auto",
        "what runs models that are not static; auto: openvino, and sentence-transformers, where it is installed, for "
        "what openvino has no graph of",
        section="models",
        unit="BACKEND",
    )
    precision: Literal["auto", "f32", "bf16"] = knob(
        "auto", "of openvino's products; auto: bf16 where the processor has it", section="models", unit="PRECISION"
    )
    device: str = knob(
        "cpu",
        "torch's name of the device for sentence-transformers: cpu, cuda, cuda:1, mps",
        section="models",
        unit="DEVICE",
    )
    inference_threads: int = knob(
        0,
        "batches of one model computed at a time, a thread each; 0 = as many as the cores that the process may use",
        section="models",
        unit="THREADS",
        ge=0,
        le=1024,
    )
    max_batch_tokens: int = knob(
        1024, "texts are computed together up to so many tokens", section="models", unit="TOKENS", ge=1, le=1 << 20
    )
    graph_cache: Path = knob(
        Path("~/.cache/isogloss"),
        "folder for openvino's compiled graphs; off keeps none",
        section="models",
        unit="FOLDER",
    )
    drain_delay_s: FiniteFloat = knob(
        0.0,
        "after a stop signal, how long calls are still taken while health says NOT_SERVING",
        section="stopping",
        unit="SECONDS",
        ge=0,
        le=3600,
    )
    drain_s: FiniteFloat = knob(
        25.0, "how long calls in flight may then take to finish", section="stopping", unit="SECONDS", ge=0, le=3600
    )
    log_level: Literal["debug", "info", "warning", "error"] = knob(
        "info", "least level that is logged", section="logs", unit="LEVEL"
    )
    log_format: Literal["text", "json"] = knob(
        "text", "readable lines, or one JSON object a line", section="logs", unit="FORMAT"
    )
    access_log: bool = knob(True, "a line for each call", section="logs", unit="")

    @field_validator("model", mode="before")
    @classmethod
    def _parted_by_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("model")
    @classmethod
    def _distinct_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [name for name, _ in map(model_name_and_source, value)]
        if not names or not all(names) or len(set(names)) != len(names):
            raise ValueError("one model or more, with distinct names, none empty; NAME=FOLDER gives one")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources: flags, environment, the TOML file."""
        named = [source["config"] for source in (init_settings(), env_settings()) if "config" in source]
        file = TomlConfigSettingsSource(settings_cls, toml_file=readable(Path(named[0])) if named else None)
        return init_settings, env_settings, file

    @property
    def graph_cache_folder(self) -> Path | None:
        """The folder for compiled graphs; None where none are kept."""
        if str(self.graph_cache) in {OFF, "."}:  # Path("") is "."
            return None
        try:
            return self.graph_cache.expanduser()
        except RuntimeError:  # the process's user has no home
            return None
