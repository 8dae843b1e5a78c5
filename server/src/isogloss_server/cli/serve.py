"""The flags of `serve`, made from the knobs."""

import argparse
from typing import Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from isogloss_server.settings.declarations import PREFIX, Settings


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
