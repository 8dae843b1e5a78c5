"""`isogloss-server serve`: its flags, made from the settings, and its run."""

import argparse
import signal
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from isogloss_server import logs
from isogloss_server.errors import StartupError
from isogloss_server.settings.declarations import PREFIX, Settings
from isogloss_server.settings.sources import configure_libraries, load, unknown_variables

EPILOG = """\
Each setting is a flag, an environment variable, and a key of the TOML file of --config. A flag wins over the variable,
the variable over the file, the file over the default.

exit status: 0 stopped after a drain, 1 could not start, 2 a setting is wrong (also an unknown model, or a key file that
cannot be read), 128 + signal stopped at once

example:
  isogloss-server serve --host 0.0.0.0 --port 50051 --log-format json --drain-delay-s 5
"""


COMPLETED_BY_UNIT = {"FILE": "file", "FOLDER": "directory"}  # unit of a setting -> what a shell completes


def add_flags(parser: argparse.ArgumentParser, *, models: object = None) -> None:
    """Adds a flag for each setting to `parser`, in a group for each section.

    Args:
        parser: The parser of the verb.
        models: What shtab completes models by, to make the parser one for completion. Another parser has no choices,
            so that the error of an invalid value is the same from every source.
    """
    sections: dict[str, argparse._ArgumentGroup] = {}
    for name, field in Settings.model_fields.items():
        section = _extra(field, "section")
        group = sections.get(section) or sections.setdefault(section, parser.add_argument_group(section))
        flag, text = f"--{name.replace('_', '-')}", _help(name, field)
        if field.annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            action = "append" if isinstance(field.default, tuple) else "store"
            unit = _extra(field, "unit")
            added = group.add_argument(flag, action=action, metavar=unit, help=text)
            if models is not None:
                complete_value(added, unit, models)
                added.choices = _words(field) or None


def complete_value(action: argparse.Action, unit: str, models: object) -> None:
    """Makes shtab complete the value of a flag or an argument by its unit."""
    completed = models if unit == "MODEL" else COMPLETED_BY_UNIT.get(unit)
    if completed is not None:
        action.complete = completed  # type: ignore[attr-defined]


def run(flags: Mapping[str, Any]) -> int:
    """Serves until a signal.

    Args:
        flags: Values by setting; None stands for a flag that is not given.

    Returns:
        The exit status: 0 after a drain, 128 + signal if stopped at once.

    Raises:
        SettingsError: A setting is unknown or out of range, or the config file cannot be read.
        StartupError: The server cannot listen, or a model cannot be loaded.
    """
    settings = load(flags)
    logs.configure(settings.log_level, settings.log_format)
    for line in unknown_variables():
        logs.warning(line)
    configure_libraries()
    # Imported here, so that invalid settings are reported before gRPC and numpy are loaded.
    import uvloop  # noqa: PLC0415

    from isogloss_server.app import serve  # noqa: PLC0415

    try:
        return uvloop.run(serve(settings))
    except KeyboardInterrupt:  # before the server handles signals
        return 128 + signal.SIGINT
    except StartupError:
        raise
    except Exception as error:
        logs.internal_error(error)
        raise StartupError(f"internal error: {type(error).__qualname__}; the log has its place") from error


def _extra(field: FieldInfo, name: str) -> str:
    extra = field.json_schema_extra
    return str(extra[name]) if isinstance(extra, dict) else ""


def _words(field: FieldInfo) -> tuple[str, ...]:
    """Returns the words that a setting can be, or none if it is not a choice."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _help(name: str, field: FieldInfo) -> str:
    low = next((bound.ge for bound in field.metadata if isinstance(bound, Ge)), None)
    high = next((bound.le for bound in field.metadata if isinstance(bound, Le)), None)
    words = _words(field)
    facts = [f"{low:g} to {high:,}"] if low is not None and high is not None else []
    facts += [" or ".join(map(str, words))] if words else []
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    facts += [f"default {default}"] if default is not None else []
    return f"{field.description} ({'; '.join([*facts, PREFIX + name.upper()])})".replace("%", "%%")
