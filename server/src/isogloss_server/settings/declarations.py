"""Every setting once, with its unit, default, range and help."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from isogloss_server.models.catalog import is_hosted
from isogloss_server.models.model_folder import BUNDLED, is_folder

PREFIX = "ISOGLOSS_"
HIGHEST_MAX_TEXTS = 50_000
OFF = "off"


class SettingsError(Exception):
    """A knob is set to what it cannot be; the message is the one line that an operator reads."""


def readable(file: Path) -> Path:
    """Returns `file`, which holds TOML and names no further file; raises SettingsError where it does not."""
    try:
        if "config" in tomllib.loads(file.read_text(encoding="utf-8")):
            raise SettingsError(f"config: {file} cannot name another config file")
    except OSError as error:
        raise SettingsError(f"config: cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {file} is not TOML: {error}") from None
    return file


def knob(
    default: Any, help_text: str, *, section: str, unit: str, ge: float | None = None, le: float | None = None
) -> Any:
    """Declares one knob; `section` is its place in the help, `unit` what stands for its value there."""
    return Field(default, description=help_text, ge=ge, le=le, json_schema_extra={"section": section, "unit": unit})


def model_name_and_source(model: str) -> tuple[str, str]:
    """Returns the name that a model is served under, and where it comes from: NAME=SOURCE, or SOURCE alone.

    SOURCE alone goes by its last part, without the revision: `owner/model@v2` is served as `model`, and so is
    `openai:owner/model@http://host/v1`.
    """
    if is_hosted(model):
        return _hosted_name(model), model
    name, equals, source = model.partition("=")
    if equals:
        return name, source
    last = Path(model).name
    return (last if is_folder(model) else last.partition("@")[0]), model


def _hosted_name(source: str) -> str:
    return source.partition(":")[2].partition("@http")[0].rpartition("/")[2]


class ServiceKnobs(BaseSettings):
    """What can be told of all that stands around the models; a part of Settings."""

    max_queue_tokens: int = knob(
        262_144,
        "work of one model that may wait, in tokens; BULK may take half of it; beyond, calls are refused, and streams "
        "are not read further",
        section="queue",
        unit="TOKENS",
        ge=1,
        le=10**9,
    )
    max_queue_bytes: int = knob(
        128 * 1024**2,
        "memory for texts and vectors of one model's waiting work; beyond, calls and streams are refused",
        section="queue",
        unit="BYTES",
        ge=1024,
        le=2**40,
    )
    watchdog_s: FiniteFloat = knob(
        30.0,
        "a batch that runs longer makes the model NOT_SERVING until one succeeds again, and fails what waits",
        section="queue",
        unit="SECONDS",
        ge=0.01,
        le=3600,
    )
    cache_bytes: int = knob(
        64 * 1024**2,
        "memory for vectors of texts that may come again, of all models together; 0 keeps none",
        section="cache",
        unit="BYTES",
        ge=0,
        le=2**40,
    )
    cache_static: bool = knob(
        True, "static models, such as the bundled one, use the cache too", section="cache", unit=""
    )
    cache_redis_url: SecretStr | None = knob(
        None,
        "Redis to share vectors with other servers: redis://[:PASSWORD@]HOST[:PORT][/DB] or rediss://",
        section="cache",
        unit="URL",
    )
    cache_redis_prefix: str = knob("isogloss:", "what its keys begin with", section="cache", unit="PREFIX")
    cache_redis_ttl_s: int = knob(
        7 * 86_400, "how long it keeps a vector", section="cache", unit="SECONDS", ge=1, le=10 * 365 * 86_400
    )
    cache_redis_timeout_ms: FiniteFloat = knob(
        20.0,
        "how long it may take to answer before a call goes on without it",
        section="cache",
        unit="MILLISECONDS",
        ge=0.1,
        le=60_000,
    )
    cohere_key_file: Path | None = knob(
        None, "file that holds Cohere's key; else CO_API_KEY", section="providers", unit="FILE"
    )
    openai_key_file: Path | None = knob(
        None, "file that holds OpenAI's key; else OPENAI_API_KEY", section="providers", unit="FILE"
    )
    provider_calls: int = knob(
        8, "calls to a provider in flight, of each model", section="providers", unit="CALLS", ge=1, le=1000
    )
    provider_texts_per_call: int = knob(
        0,
        "texts of one call to a provider; 0 = as many as it takes",
        section="providers",
        unit="TEXTS",
        ge=0,
        le=10_000,
    )
    provider_texts_per_minute: int = knob(
        0,
        "texts that a provider is sent a minute, of each model; 0 = the provider's known limit, if any",
        section="providers",
        unit="TEXTS",
        ge=0,
        le=10**9,
    )
    provider_timeout_s: FiniteFloat = knob(
        60.0,
        "how long a provider may take, retries included, where the caller sets no deadline, and at start",
        section="providers",
        unit="SECONDS",
        ge=0.1,
        le=3600,
    )
    metrics_port: int | None = knob(
        None, "port for Prometheus at /metrics; 0 takes a free one", section="metrics", unit="PORT", ge=0, le=65_535
    )


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
