"""The TOML file that `--config` or `ISOGLOSS_CONFIG` names."""

import tomllib
from pathlib import Path


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
