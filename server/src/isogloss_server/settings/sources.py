"""From flags, environment and file to settings: the only reader of the environment."""

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError as SourceError

from isogloss_server.settings.file import SettingsError
from isogloss_server.settings.knobs import PREFIX, Settings

CLIENT_VARIABLES = frozenset({"ISOGLOSS_SERVER", "ISOGLOSS_API_KEY"})


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
