"""The server's settings: type, default, range, unit and help of each, in the order of `serve --help`."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from isogloss_server.errors import SettingsError
from isogloss_server.models.catalog import is_hosted
from isogloss_server.models.model_folder import BUNDLED, is_folder

PREFIX = "ISOGLOSS_"
HIGHEST_MAX_TEXTS = 50_000
OFF = "off"
MAX_FILE_BYTES = 64 * 1024  # of the config file: all settings with long comments are a tenth of it
MAX_DOTS_IN_LINE = 256  # of the config file: the time to parse a dotted key grows with the square of its parts
MAX_CHARACTERS = 4096  # of a setting's text
# Text of a flag or a variable -> value of its setting's type. Other text stays, and is rejected like any wrong type.
WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|nan)")
ON_WORDS, OFF_WORDS = {"1", "true", "t", "yes", "y", "on"}, {"0", "false", "f", "no", "n", "off"}
SWITCH = dict.fromkeys(ON_WORDS, True) | dict.fromkeys(OFF_WORDS, False)
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40


def setting(
    default: Any, help_text: str, *, section: str, unit: str, ge: float | None = None, le: float | None = None
) -> Any:
    """Declares one setting.

    Args:
        default: The value if no source sets it.
        help_text: One phrase for `serve --help` and docs/settings.md.
        section: The heading of the help that lists the setting.
        unit: The placeholder of its value in the help, such as SECONDS; empty for a switch.
        ge: The lowest valid value.
        le: The highest valid value.

    Returns:
        A pydantic field.
    """
    extra: dict[str, Any] = {"section": section, "unit": unit}
    # Numbers and switches take no other type, so that `port = true` is not port 1.
    is_strict = True if ge is not None or isinstance(default, bool) else None
    return Field(default, description=help_text, ge=ge, le=le, strict=is_strict, json_schema_extra=extra)


class Settings(BaseSettings):
    """The settings of `isogloss-server serve`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    config: Path | None = setting(
        None, "TOML file with settings; its keys are the names in this list", section="address", unit="FILE"
    )
    host: str = setting(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 or :: listens on all addresses of the machine",
        section="address",
        unit="HOST",
    )
    port: int = setting(50051, "port to listen on; 0 = any free port", section="address", unit="PORT", ge=0, le=65_535)
    port_file: Path | None = setting(
        None,
        "file that the server writes its port to when it is ready, and removes when it stops",
        section="address",
        unit="FILE",
    )

    model: Annotated[tuple[str, ...], NoDecode] = setting(
        (BUNDLED,),
        f"model to serve: {BUNDLED} (bundled), a name from `models list`, a hub id, a folder in the "
        "sentence-transformers layout, PROVIDER:MODEL or PROVIDER:MODEL@URL with cohere, openai or nvidia; "
        "NAME=MODEL serves it under another name; repeat the flag for several models (in the "
        "environment: separate them by commas); the first is the default model",
        section="models",
        unit="MODEL",
    )
    backend: Literal["auto", "openvino", "sentence-transformers"] = setting(
        "auto",
        "runtime of models that are not static; auto: openvino, or sentence-transformers (if installed) for "
        "architectures that openvino does not support, and for a device other than cpu",
        section="models",
        unit="BACKEND",
    )
    precision: Literal["auto", "f32", "bf16"] = setting(
        "auto",
        "number format of openvino's matrix products; auto: bf16 if the processor supports it, else f32",
        section="models",
        unit="PRECISION",
    )
    device: str = setting(
        "cpu",
        "torch device for sentence-transformers, such as cpu, cuda, cuda:1 or mps",
        section="models",
        unit="DEVICE",
    )
    worker_threads: int = setting(
        2,
        "threads for tokenization, comparison and the bundled model",
        section="models",
        unit="THREADS",
        ge=1,
        le=256,
    )
    inference_threads: int = setting(
        0,
        "batches of one model that run at the same time, one thread each; 0 = number of cores that the process may use",
        section="models",
        unit="THREADS",
        ge=0,
        le=1024,
    )
    max_batch_tokens: int = setting(1024, "tokens of one batch", section="models", unit="TOKENS", ge=1, le=1 << 20)
    graph_cache: Path = setting(
        Path("~/.cache/isogloss"),
        "folder for copies of weights and compiled graphs; only the server's user may write to it; "
        f"{OFF} = serve from memory",
        section="models",
        unit="FOLDER",
    )

    max_texts: int = setting(
        0,
        "texts of one request; 0 = as many as fit 4 MiB of float32 vectors",
        section="limits",
        unit="TEXTS",
        ge=0,
        le=HIGHEST_MAX_TEXTS,
    )
    max_request_bytes: int = setting(
        4 * MIB,
        "UTF-8 text and vectors of one request",
        section="limits",
        unit="BYTES",
        ge=KIB,
        le=256 * MIB,
    )
    max_response_bytes: int = setting(
        16 * MIB, "size of one response", section="limits", unit="BYTES", ge=KIB, le=512 * MIB
    )
    max_pairs: int = setting(
        4 * 1024**2,
        "pairs of one Similarity request: queries x candidates",
        section="limits",
        unit="PAIRS",
        ge=1,
        le=10**9,
    )
    stream_window_requests: int = setting(
        32,
        "unanswered requests of one stream; at this number the server stops reading the stream",
        section="limits",
        unit="REQUESTS",
        ge=1,
        le=10_000,
    )
    stream_window_bytes: int = setting(
        16 * MIB,
        "bytes of one stream's unanswered requests and unsent responses; at this number the server stops reading the "
        "stream",
        section="limits",
        unit="BYTES",
        ge=KIB,
        le=GIB,
    )
    max_call_bytes: int = setting(
        512 * MIB,
        "memory for all calls together: requests, and responses until their callers have read them; beyond it, calls "
        "are refused and streams are not read",
        section="limits",
        unit="BYTES",
        ge=MIB,
        le=TIB,
    )
    request_timeout_s: FiniteFloat = setting(
        60.0,
        "time that one request may take to arrive; after it the call fails",
        section="limits",
        unit="SECONDS",
        ge=0.1,
        le=86_400,
    )
    response_timeout_s: FiniteFloat = setting(
        60.0,
        "time that a caller may take to read a response; after it, or after 5 s while memory for calls is scarce, the "
        "server closes the connection",
        section="limits",
        unit="SECONDS",
        ge=0.1,
        le=86_400,
    )
    max_connections: int = setting(
        10_000,
        "connections at the same time; the server closes further ones at once",
        section="limits",
        unit="CONNECTIONS",
        ge=1,
        le=10**6,
    )
    max_connection_calls: int = setting(
        256,
        "calls of one connection at the same time, streams included; gRPC clients hold back further ones",
        section="limits",
        unit="CALLS",
        ge=1,
        le=10**6,
    )
    connection_idle_s: FiniteFloat = setting(
        900.0,
        "time after which a connection without calls is closed; 0 = never",
        section="limits",
        unit="SECONDS",
        ge=0,
        le=7 * 86_400,
    )
    connection_age_s: FiniteFloat = setting(
        3600.0,
        "age after which a connection accepts no new calls; those in flight finish, and gRPC clients connect anew; "
        "0 = no limit",
        section="limits",
        unit="SECONDS",
        ge=0,
        le=7 * 86_400,
    )

    tls_cert: Path | None = setting(
        None,
        "certificate of the server in PEM, followed by those between it and the root; with it, the ports use TLS; read "
        "again when it changes",
        section="security",
        unit="FILE",
    )
    tls_key: Path | None = setting(
        None, "private key of the certificate in PEM, not encrypted", section="security", unit="FILE"
    )
    tls_client_ca: Path | None = setting(
        None,
        "certificate authorities in PEM; with it, callers need a certificate of one of them",
        section="security",
        unit="FILE",
    )
    keys_file: Path | None = setting(
        None,
        "file with the hashes of the API keys that callers need, written by `isogloss-server keys`; read again when it "
        "changes; without it, everybody may call",
        section="security",
        unit="FILE",
    )
    open_health: bool = setting(
        True,
        "with keys, answer grpc.health.v1 without a key too, except about models by name",
        section="security",
        unit="",
    )
    open_reflection: bool = setting(
        False, "with keys, answer server reflection without a key too", section="security", unit=""
    )
    require_security: bool = setting(
        False,
        "do not start if other machines can reach the server without encryption or keys",
        section="security",
        unit="",
    )

    max_queue_s: FiniteFloat = setting(
        30.0,
        "estimated seconds that other requests may delay a request to a model, half of it for BULK; beyond it, calls "
        "are refused and streams are not read",
        section="queue",
        unit="SECONDS",
        ge=0.1,
        le=3600,
    )
    max_queue_bytes: int = setting(
        128 * MIB,
        "memory for texts and vectors of one model's waiting work; beyond it, calls and streams are refused",
        section="queue",
        unit="BYTES",
        ge=KIB,
        le=TIB,
    )
    watchdog_s: FiniteFloat = setting(
        30.0,
        "time after which a batch, or a piece of work on a worker thread, counts as stalled, plus eight times "
        "what the measured speed predicts for a batch: its requests fail, and the model is DEGRADED, or NOT_SERVING "
        "if all threads are stalled, until the work ends",
        section="queue",
        unit="SECONDS",
        ge=0.01,
        le=3600,
    )

    cache_bytes: int = setting(
        64 * MIB,
        "memory for cached vectors of all models; 0 = no cache in memory",
        section="cache",
        unit="BYTES",
        ge=0,
        le=TIB,
    )
    cache_static: bool = setting(
        True, "cache the vectors of static models, such as the bundled one, too", section="cache", unit=""
    )
    cache_isolation: bool = setting(
        True,
        "keep separate entries for each key's name, in memory and in Redis, so that neither timing nor cached_rows "
        "reveals what others embedded",
        section="cache",
        unit="",
    )

    cache_redis_url: SecretStr | None = setting(
        None,
        "Redis server that several servers use as a shared cache: redis://[:PASSWORD@]HOST[:PORT][/DB] or rediss://",
        section="Redis",
        unit="URL",
    )
    cache_redis_prefix: str = setting("isogloss:", "prefix of the keys in Redis", section="Redis", unit="PREFIX")
    cache_redis_ttl_s: int = setting(
        7 * 86_400, "lifetime of a vector in Redis", section="Redis", unit="SECONDS", ge=1, le=10 * 365 * 86_400
    )
    cache_redis_timeout_ms: FiniteFloat = setting(
        20.0,
        "time limit of a look-up in Redis; after it the server computes the vectors",
        section="Redis",
        unit="MILLISECONDS",
        ge=0.1,
        le=60_000,
    )

    cohere_key_file: Path | None = setting(
        None, "file with the API key of Cohere; default: the variable CO_API_KEY", section="providers", unit="FILE"
    )
    openai_key_file: Path | None = setting(
        None, "file with the API key of OpenAI; default: the variable OPENAI_API_KEY", section="providers", unit="FILE"
    )
    nvidia_key_file: Path | None = setting(
        None, "file with the API key of NVIDIA; default: the variable NVIDIA_API_KEY", section="providers", unit="FILE"
    )
    provider_calls: int = setting(
        8,
        "calls to a provider at the same time, for each model",
        section="providers",
        unit="CALLS",
        ge=1,
        le=1000,
    )
    provider_texts_per_call: int = setting(
        0,
        "texts of one call to a provider; 0 = the provider's limit",
        section="providers",
        unit="TEXTS",
        ge=0,
        le=10_000,
    )
    provider_texts_per_minute: int = setting(
        0,
        "texts sent to a provider in a minute, for each model; 0 = the provider's limit, if known",
        section="providers",
        unit="TEXTS",
        ge=0,
        le=10**9,
    )
    provider_timeout_s: FiniteFloat = setting(
        60.0,
        "time limit of calls to a provider, retries included, at start and for callers without a deadline",
        section="providers",
        unit="SECONDS",
        ge=0.1,
        le=3600,
    )

    metrics_port: int | None = setting(
        None,
        "port that serves Prometheus metrics at /metrics; 0 = any free port; without it, no metrics",
        section="metrics",
        unit="PORT",
        ge=0,
        le=65_535,
    )

    tracing: bool = setting(
        False,
        "export traces of calls by OTLP, for which the extra `tracing` is needed; variables of OpenTelemetry such as "
        "OTEL_EXPORTER_OTLP_ENDPOINT configure the export",
        section="traces",
        unit="",
    )

    drain_delay_s: FiniteFloat = setting(
        0.0,
        "time after a stop signal in which health is NOT_SERVING and the server still accepts calls",
        section="stopping",
        unit="SECONDS",
        ge=0,
        le=3600,
    )
    drain_s: FiniteFloat = setting(
        25.0,
        "time that calls in flight may then take to finish",
        section="stopping",
        unit="SECONDS",
        ge=0,
        le=3600,
    )

    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "lowest level of the lines in the log", section="logs", unit="LEVEL"
    )
    log_format: Literal["text", "json"] = setting(
        "text", "text: lines for people; json: one JSON object a line", section="logs", unit="FORMAT"
    )
    access_log: bool = setting(True, "log one line for each call", section="logs", unit="")

    @field_validator("model", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and (len(text) > MAX_CHARACTERS or any(c < " " or c == "\x7f" for c in text)):
                raise ValueError(f"text of at most {MAX_CHARACTERS:,} characters, without control characters")
        return value

    @field_validator("model")
    @classmethod
    def _check_distinct_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [name for name, _ in map(model_name_and_source, value)]
        if not names or not all(names) or len(set(names)) != len(names):
            raise ValueError("one or more models with distinct, non-empty names; NAME=MODEL gives a model a name")
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
        """Returns the sources in order of precedence: flags, environment, TOML file.

        Raises:
            SettingsError: The TOML file cannot be read.
        """
        flags, variables = _from_text(init_settings()), _from_text(env_settings())
        named = [source["config"] for source in (flags, variables) if "config" in source]
        file = _read(Path(named[0])) if named else {}
        sources = [InitSettingsSource(settings_cls, values) for values in (flags, variables, file)]
        return tuple(sources)

    @property
    def uses_tls(self) -> bool:
        """True if the ports use TLS."""
        return self.tls_cert is not None

    @property
    def graph_cache_folder(self) -> Path | None:
        """The folder for copies of weights and compiled graphs; None if they are not kept."""
        if str(self.graph_cache) in {OFF, "."}:  # Path("") is "."
            return None
        try:
            return self.graph_cache.expanduser()
        except RuntimeError:  # the user of the process has no home folder
            return None


def model_name_and_source(model: str) -> tuple[str, str]:
    """Splits a value of the setting `model`, which is NAME=SOURCE or SOURCE.

    Without NAME, the name is the last part of the source without its revision: `owner/model@v2` is served as `model`,
    and `openai:owner/model@http://host/v1` too.

    Returns:
        The name that the model is served under, and its source.
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


def _from_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with their text converted to the type of each: a flag or a variable has only text."""
    return {name: _value(name, value) if isinstance(value, str) else value for name, value in values.items()}


def _value(name: str, text: str) -> Any:
    annotation = Settings.model_fields[name].annotation if name in Settings.model_fields else str
    kinds = get_args(annotation) or (annotation,)
    if int in kinds and WHOLE.fullmatch(text) and len(text) < MAX_CHARACTERS:
        return int(text)
    if float in kinds and DECIMAL.fullmatch(text):
        return float(text)
    return SWITCH.get(text.lower(), text) if bool in kinds else text


def _read(file: Path) -> dict[str, Any]:
    """Reads the config file.

    Raises:
        SettingsError: It is unreadable, too large, not TOML, or has the key `config`.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SettingsError(f"config file {file} is larger than {MAX_FILE_BYTES:,} bytes")
        text = content.decode()
        for number, line in enumerate(text.split("\n"), 1):
            if line.count(".") > MAX_DOTS_IN_LINE:
                raise SettingsError(f"config file {file}: line {number} has more than {MAX_DOTS_IN_LINE} dots")
        values = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"cannot read the config file {file}: {error.strerror}") from None
    except RecursionError:
        raise SettingsError(f"config file {file} is nested too deeply; a value is a word, a number or a list") from None
    except ValueError as error:  # of tomllib, of the encoding, or of an integer of thousands of digits
        raise SettingsError(f"config file {file} is not valid TOML: {error}") from None
    if "config" in values:
        raise SettingsError(f"config file {file} cannot name another config file; remove the key 'config'")
    return values
