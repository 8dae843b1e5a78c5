"""Every knob once: name with unit, default, range, help. The only reader of the environment.

A knob `drain_s` is the flag `--drain-s`, the variable `ISOGLOSS_DRAIN_S` and the key `drain_s` of the TOML file that
`--config` or `ISOGLOSS_CONFIG` names. A flag wins over a variable, a variable over the file, the file over the default.
"""

import argparse
import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import Field, FiniteFloat, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from isogloss_server.models.weights import BUNDLED

PREFIX = "ISOGLOSS_"
HIGHEST_MAX_TEXTS = 50_000
CLIENT_VARIABLES = frozenset({"ISOGLOSS_SERVER", "ISOGLOSS_API_KEY"})


class SettingsError(Exception):
    """A knob is set to what it cannot be; the message is the one line that an operator reads."""


def knob(
    default: Any, help_text: str, *, section: str, unit: str, ge: float | None = None, le: float | None = None
) -> Any:
    """Declares one knob; `section` is its place in the help, `unit` what stands for its value there."""
    return Field(default, description=help_text, ge=ge, le=le, json_schema_extra={"section": section, "unit": unit})


class Settings(BaseSettings):
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
        f"model to serve, {BUNDLED} (bundled) or a folder in the sentence-transformers layout, optionally NAME=FOLDER; "
        "may be given more than once (in the environment: parted by commas), the first is the default",
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
        2, "threads for inference and comparison", section="models", unit="THREADS", ge=1, le=256
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
        file = TomlConfigSettingsSource(settings_cls, toml_file=_readable(Path(named[0])) if named else None)
        return init_settings, env_settings, file


def model_name_and_source(model: str) -> tuple[str, str]:
    """Returns the name that a model is served under, and where it comes from: NAME=SOURCE, or SOURCE alone."""
    name, equals, source = model.partition("=")
    return (name, source) if equals else (Path(model).name, model)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` a flag for each knob."""
    sections: dict[str, argparse._ArgumentGroup] = {}
    for name, field in Settings.model_fields.items():
        section = _extra(field, "section")
        group = sections.get(section) or sections.setdefault(section, parser.add_argument_group(section))
        flag, text = f"--{name.replace('_', '-')}", _help(name, field)
        if field.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            action = "append" if isinstance(field.default, tuple) else "store"
            group.add_argument(flag, action=action, metavar=_extra(field, "unit"), help=text)


def load(flags: Mapping[str, Any]) -> Settings:
    """Returns the settings of flags (those not None), environment and file.

    Raises:
        SettingsError: a knob is unknown or out of range, or the file cannot be read.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [_complaint(given, str(e["loc"][0]) if e["loc"] else "", e["msg"], e["type"]) for e in error.errors()]
        raise SettingsError("; ".join(lines)) from None
    except SourceError as error:
        raise SettingsError(str(error)) from None


def unknown_variables() -> Iterator[str]:
    """Yields a line for each ISOGLOSS_ variable that is no knob; others may own it, so it is no error."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    for name in sorted(set(os.environ) - known):
        if name.startswith(PREFIX):
            near = difflib.get_close_matches(name, known, n=1)
            yield f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else "")


def _readable(file: Path) -> Path:
    try:
        if "config" in tomllib.loads(file.read_text(encoding="utf-8")):
            raise SettingsError(f"config: {file} cannot name another config file")
    except OSError as error:
        raise SettingsError(f"config: cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"config: {file} is not TOML: {error}") from None
    return file


def _complaint(given: Mapping[str, Any], name: str, message: str, kind: str) -> str:
    variable, flag = PREFIX + name.upper(), f"--{name.replace('_', '-')}"
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        return f"in the config file: {name} is no setting" + (f"; did you mean {near[0]}?" if near else "")
    source = flag if name in given else variable if variable in os.environ else f"{name} in the config file"
    hint = ""
    if source == variable and os.environ[variable].startswith("tcp://"):
        hint = " (Kubernetes sets this variable for a Service of that name; switch enableServiceLinks off)"
    return f"{source} must be {message}{hint}"


def _extra(field: FieldInfo, name: str) -> str:
    extra = field.json_schema_extra
    return str(extra[name]) if isinstance(extra, dict) else ""


def _help(name: str, field: FieldInfo) -> str:
    low = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), None)
    high = next((bound.le for bound in field.metadata if isinstance(bound, Le)), None)
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    facts = [f"{low:g} to {high:,}"] if low is not None and high is not None else []
    facts += [" or ".join(map(str, words))] if words else []
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    facts += [f"default {default}"] if default is not None else []
    return f"{field.description} ({'; '.join([*facts, PREFIX + name.upper()])})".replace("%", "%%")
