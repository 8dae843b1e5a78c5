"""Reads settings from flags, environment and file. The only reader of the environment."""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError as SourceError

from isogloss_server.errors import ProviderSetupError
from isogloss_server.settings.declarations import PREFIX, Settings, SettingsError

CLIENT_VARIABLES = frozenset({"ISOGLOSS_SERVER", "ISOGLOSS_API_KEY"})
KEY_VARIABLES = {"cohere": "CO_API_KEY", "openai": "OPENAI_API_KEY"}


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


def provider_key(provider: str, settings: Settings) -> SecretStr | None:
    """Returns the key for "cohere" or "openai", if there is one.

    Raises:
        ProviderSetupError: its file cannot be read, or what is there is no key.
    """
    file: Path | None = {"cohere": settings.cohere_key_file, "openai": settings.openai_key_file}[provider]
    source = KEY_VARIABLES[provider] if file is None else str(file)
    try:
        key = os.environ.get(source, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ProviderSetupError(f"cannot read the key in {source}: {type(error).__name__}") from None
    key = key.strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ProviderSetupError(f"what {source} holds is no key: it has characters that none has")
    if file is not None and not key:
        raise ProviderSetupError(f"{source} holds no key")
    return SecretStr(key) if key else None


def silence_grpc() -> None:
    """Lets gRPC's core write nothing, unless GRPC_VERBOSITY says otherwise; to be called before it is loaded.

    Its lines quote what callers say, line ends and all: whoever reaches the port could write lines into the log.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
