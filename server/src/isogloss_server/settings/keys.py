"""The keys of providers: from a file, else from the variable that the provider's own SDK reads."""

import os
from pathlib import Path

from pydantic import SecretStr

from isogloss_server.errors import ProviderSetupError
from isogloss_server.settings.knobs import Settings

VARIABLES = {"cohere": "CO_API_KEY", "openai": "OPENAI_API_KEY"}


def provider_key(provider: str, settings: Settings) -> SecretStr | None:
    """Returns the key for "cohere" or "openai", if there is one.

    Raises:
        ProviderSetupError: its file cannot be read, or what is there is no key.
    """
    file: Path | None = {"cohere": settings.cohere_key_file, "openai": settings.openai_key_file}[provider]
    source = VARIABLES[provider] if file is None else str(file)
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
