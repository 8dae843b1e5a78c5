"""Keys files for tests, and the metadata that sends a key."""

from pathlib import Path
from typing import Any

from isogloss_server.clock import SystemClock
from isogloss_server.security.keys import changed, new_entry


def add_key(file: Path, name: str = "caller", **rights: Any) -> str:
    """Adds a key with these rights to a file, which is created if it is missing; returns the key."""
    with changed(file) as entries:
        key, entry = new_entry(SystemClock().unix_s(), name=name, **rights)
        entries.append(entry)
    return key


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call with a key."""
    return (("authorization", f"Bearer {key}"),)
