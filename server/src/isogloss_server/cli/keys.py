"""`isogloss-server keys`: adds, lists, revokes and rotates the API keys of callers."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isogloss_server.clock import SystemClock
from isogloss_server.errors import SettingsError
from isogloss_server.security.keys import Entry, changed, new_entry, read
from isogloss_server.settings.sources import load

HEADINGS = ("name", "id", "models", "methods", "quota", "expires")
NAME_FORM = "NAME must have 1 to 64 letters, digits and the characters . _ @ -, and begin with a letter or a digit"
FLAGS = {
    "models": "--model",
    "methods": "--method",
    "texts_per_minute": "--texts-per-minute",
    "tokens_per_minute": "--tokens-per-minute",
    "calls": "--calls",
}
MAX_DAYS = 36_500
QUOTAS = ("texts_per_minute", "tokens_per_minute", "calls")


def run(flags: Mapping[str, Any]) -> int:
    """Runs one verb.

    Args:
        flags: The verb as `keys_verb`, and its arguments.

    Returns:
        The exit status.

    Raises:
        SettingsError: The keys file is not named, is invalid, or cannot be written; or an argument is invalid.
    """
    file = load({"keys_file": flags["keys_file"]}).keys_file
    if file is None:
        raise SettingsError("no keys file; set --keys-file or ISOGLOSS_KEYS_FILE")
    return VERBS[flags["keys_verb"]](file, flags)


def add(file: Path, flags: Mapping[str, Any]) -> int:
    """Adds a key to the file, which is created if it does not exist; prints the key."""
    quotas = {name: flags[name] for name in QUOTAS}
    rights = {"models": tuple(flags["model"]), "methods": tuple(flags["method"]), **quotas}
    with changed(file) as entries:
        key, entry = _new(flags, rights)
        entries.append(entry)
    _print_new(key, entry, file)
    return 0


def list_keys(file: Path, flags: Mapping[str, Any]) -> int:
    """Prints one line for each key."""
    entries = read(file)
    if flags["json"]:
        rows = [entry.model_dump(mode="json", exclude={"sha256"}) for entry in entries]
        print(json.dumps(rows, indent=1))  # noqa: T201
        return 0
    lines = [HEADINGS, *map(_row, entries)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
    return 0


def revoke(file: Path, flags: Mapping[str, Any]) -> int:
    """Removes keys."""
    word = flags["name"]
    with changed(file) as entries:
        revoked = [entry for entry in entries if word in {entry.id, entry.name}]
        if not revoked:
            raise _unknown(word, entries)
        entries[:] = [entry for entry in entries if entry not in revoked]
    _explain(f"revoked {_keys(revoked)}; a server that reads {file} refuses them within a second")
    return 0


def rotate(file: Path, flags: Mapping[str, Any]) -> int:
    """Adds a key for a name, and lets its older keys expire; removes those that have expired."""
    name, now = flags["name"], _now()
    if not 0 <= flags["overlap_hours"] <= 24 * MAX_DAYS:
        raise SettingsError(f"--overlap-hours must be 0 to {24 * MAX_DAYS:,}, not {flags['overlap_hours']:g}")
    end = now + timedelta(hours=flags["overlap_hours"])
    with changed(file) as entries:
        old = [entry for entry in entries if entry.name == name]
        if not old:
            raise _unknown(name, entries)
        rights = old[-1].model_dump(include={"models", "methods", *QUOTAS})
        key, added = _new(flags, rights)
        kept = [entry for entry in entries if entry.name != name or entry.expires is None or entry.expires > now]
        entries[:] = [_expiring(entry, end) if entry.name == name else entry for entry in kept]
        entries.append(added)
    _print_new(key, added, file)
    _explain(f"older keys of {name!r} expire at {end:%Y-%m-%d %H:%M} UTC or before")
    return 0


def _expiring(entry: Entry, end: datetime) -> Entry:
    return entry.model_copy(update={"expires": min(entry.expires or end, end)})


def _new(flags: Mapping[str, Any], rights: Mapping[str, Any]) -> tuple[str, Entry]:
    days = flags["expires_days"]
    if days is not None and not 0 < days <= MAX_DAYS:
        raise SettingsError(f"--expires-days must be above 0 and at most {MAX_DAYS:,}, not {days:g}")
    expires = None if days is None else _now() + timedelta(days=days)
    try:
        return new_entry(SystemClock().unix_s(), name=flags["name"], expires=expires, **rights)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        flag = FLAGS.get(str(first["loc"][0]))
        raise SettingsError(f"{flag}: {first['msg']}" if flag else NAME_FORM) from None


def _print_new(key: str, entry: Entry, file: Path) -> None:
    """Prints a key on stdout, and explains it on stderr, so that stdout can be redirected to a file or a program."""
    _explain(f"added key {entry.id} for {entry.name!r} to {file}; this is the only time that it is shown:")
    print(key)  # noqa: T201


def _explain(message: str) -> None:
    print(f"isogloss-server: {message}", file=sys.stderr)  # noqa: T201


def _unknown(word: str, entries: Sequence[Entry]) -> SettingsError:
    names = ", ".join(sorted({entry.name for entry in entries})) or "none"
    return SettingsError(f"unknown key {word!r}; names in the file: {names}")


def _keys(entries: Sequence[Entry]) -> str:
    ids = ", ".join(entry.id for entry in entries)
    return f"{len(entries)} key{'s' * (len(entries) != 1)} of {entries[0].name!r} ({ids})"


def _row(entry: Entry) -> tuple[str, ...]:
    limits = (("texts/min", entry.texts_per_minute), ("tokens/min", entry.tokens_per_minute), ("calls", entry.calls))
    quota = ", ".join(f"{limit:,} {unit}" for unit, limit in limits if limit)
    expires = "never" if entry.expires is None else f"{entry.expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if entry.expires is not None and entry.expires <= _now():
        expires += " (expired)"
    return (
        entry.name,
        entry.id,
        " ".join(entry.models) or "all",
        " ".join(entry.methods) or "all",
        quota or "none",
        expires,
    )


def _now() -> datetime:
    return datetime.fromtimestamp(int(SystemClock().unix_s()), UTC)


VERBS: Mapping[str, Callable[[Path, Mapping[str, Any]], int]] = {
    "add": add,
    "list": list_keys,
    "revoke": revoke,
    "rotate": rotate,
}
