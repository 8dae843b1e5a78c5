"""What the server can be told: every knob once (knobs.py), and where its value comes from (sources.py).

A knob `drain_s` is the flag `--drain-s`, the variable `ISOGLOSS_DRAIN_S` and the key `drain_s` of the TOML file that
`--config` or `ISOGLOSS_CONFIG` names. A flag wins over a variable, a variable over the file, the file over the default.
"""

from isogloss_server.settings.file import SettingsError
from isogloss_server.settings.flags import add_flags
from isogloss_server.settings.grpc_log import quieten as quieten_grpc
from isogloss_server.settings.keys import VARIABLES as KEY_VARIABLES
from isogloss_server.settings.keys import provider_key
from isogloss_server.settings.knobs import HIGHEST_MAX_TEXTS, PREFIX, Settings
from isogloss_server.settings.model_names import model_name_and_source
from isogloss_server.settings.sources import load, unknown_variables

__all__ = [
    "HIGHEST_MAX_TEXTS",
    "KEY_VARIABLES",
    "PREFIX",
    "Settings",
    "SettingsError",
    "add_flags",
    "load",
    "model_name_and_source",
    "provider_key",
    "quieten_grpc",
    "unknown_variables",
]
