"""Reads the settings from flags, environment and config file. No other module reads the environment."""

import difflib
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError as SourceError

from isogloss_server.errors import SettingsError
from isogloss_server.settings.declarations import PREFIX, Settings

MAX_ERRORS = 5  # in one message
MAX_NAME_CHARACTERS = 80  # of an unknown setting, in a message
CLIENT_VARIABLES = frozenset(
    f"ISOGLOSS_{name}"
    for name in ("SERVER", "API_KEY", "TLS", "ROOT_CERTIFICATES", "CLIENT_CERTIFICATE", "CLIENT_KEY", "SERVER_NAME")
)
KEY_VARIABLES = {"cohere": "CO_API_KEY", "openai": "OPENAI_API_KEY", "nvidia": "NVIDIA_API_KEY"}
PROXY_VARIABLES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})  # of httpx, in either case
SECRET_OF_URL = re.compile(r"(://|@).*(?=@)|\?.*")  # user, password and query, also of a URL that will be rejected
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
KUBERNETES_VARIABLE = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
KUBERNETES_HINT = "set by Kubernetes for a Service of that name; `enableServiceLinks: false` in the Pod prevents it"


def load(flags: Mapping[str, Any]) -> Settings:
    """Reads all sources.

    Args:
        flags: Values of the command line by setting; None stands for a flag that is not given.

    Returns:
        The settings. A flag wins over the environment, the environment over the file.

    Raises:
        SettingsError: A setting is unknown or out of range, or the file cannot be read.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        errors = error.errors()
        lines = [
            _message(given, str(e["loc"][0]) if e["loc"] else "", e["msg"], e["type"]) for e in errors[:MAX_ERRORS]
        ]
        more = [f"and {len(errors) - MAX_ERRORS} more errors"] if len(errors) > MAX_ERRORS else []
        raise SettingsError("; ".join([*lines, *more])) from None
    except SourceError as error:
        raise SettingsError(str(error)) from None


def printable(settings: Settings) -> dict[str, Any]:
    """Returns the models, and the settings that differ from their defaults, for the log; secrets are masked."""
    changed = {name: value for name, value in settings if value != Settings.model_fields[name].default}
    changed.pop("model", None)
    return {"models": _masked(settings.model), "settings": {name: _masked(value) for name, value in changed.items()}}


def _masked(value: object) -> object:
    """Returns a number or switch as it is, other values as text without secrets; a SecretStr masks itself."""
    if isinstance(value, tuple):
        return [_masked(part) for part in value]
    return value if isinstance(value, int | float) else SECRET_OF_URL.sub(r"\1***", str(value))


def unknown_variables() -> Iterator[str]:
    """Yields warnings about ISOGLOSS_ variables that are not settings; other programs may own them, so no errors."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    unknown = sorted(name for name in set(os.environ) - known if name.startswith(PREFIX))
    kubernetes = [name for name in unknown if KUBERNETES_VARIABLE.fullmatch(name)]
    if kubernetes:
        yield f"ignored {', '.join(kubernetes)}: {KUBERNETES_HINT}"
    for name in unknown:
        if name not in kubernetes:
            yield f"unknown variable {_suggested(name, known)}"


def _message(given: Mapping[str, Any], name: str, message: str, kind: str) -> str:
    """Returns one line on an invalid setting, which names its source."""
    variable, flag = PREFIX + name.upper(), f"--{name.replace('_', '-')}"
    message = "the path of a file or folder" if kind == "path_type" else message
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    file = given.get("config") or os.environ.get(f"{PREFIX}CONFIG")
    if kind == "extra_forbidden":
        return f"config file {file}: unknown setting {_suggested(name, Settings.model_fields)}"
    source = flag if name in given else variable if variable in os.environ else f"config file {file}: {name}"
    hint = f" ({KUBERNETES_HINT})" if source == variable and os.environ[variable].startswith("tcp://") else ""
    return f"{source} must be {message}{hint}"


def _suggested(name: str, known: "set[str] | Mapping[str, Any]") -> str:
    name = name[:MAX_NAME_CHARACTERS]
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name!r}; did you mean {near[0]!r}?" if near else f"{name!r}; `isogloss-server serve --help` lists them"


def connection_setup_failure(error: Exception) -> str:
    """Describes why an HTTP library cannot be set up, and names the variables that it reads.

    The values are not quoted, because the URL of a proxy may hold a password.
    """
    proxies = sorted(name for name in os.environ if name.lower() in PROXY_VARIABLES and os.environ[name])
    if isinstance(error, OSError):
        files = [name for name in CERTIFICATE_VARIABLES if os.environ.get(name)]
        reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "not a PEM file"
        return f"cannot read the file in {' or '.join(files) or 'the settings of TLS'}: {reason}"
    if isinstance(error, ImportError):
        socks = [name for name in proxies if os.environ[name].lower().startswith("socks")]
        return (
            f"a SOCKS proxy in {' and '.join(socks or proxies)} requires the package socksio; install it or unset them"
        )
    if proxies:
        return f"invalid URL of a proxy in {' or '.join(proxies)}"
    return f"unexpected {type(error).__name__}"


def provider_key(provider: str, settings: Settings) -> SecretStr | None:
    """Reads the API key of a provider.

    Args:
        provider: "cohere", "openai" or "nvidia".
        settings: Names the file of the key, if the key is in a file.

    Returns:
        The key, or None if neither file nor variable is set.

    Raises:
        SettingsError: The file cannot be read or is empty, or the key has invalid characters.
    """
    file: Path | None = getattr(settings, f"{provider}_key_file")
    source = KEY_VARIABLES[provider] if file is None else str(file)
    try:
        key = os.environ.get(source, "") if file is None else file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read the key file {source}: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"cannot read the key file {source}: it is not UTF-8 text") from None
    key = key.strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise SettingsError(f"invalid key in {source}: a key has only printable ASCII characters, without spaces")
    if file is not None and not key:
        raise SettingsError(f"the key file {source} is empty")
    return SecretStr(key) if key else None


def configure_libraries() -> None:
    """Sets libraries' own variables: no output on stderr, no threads of BLAS; call it before they are imported.

    The lines of gRPC's core, off unless GRPC_VERBOSITY is set, quote what peers send, line ends included: any peer
    could write lines into the log. Libraries in Rust print the stack of a panic if RUST_BACKTRACE is set, as in some
    images; the log has the Python stack of the error. OpenBLAS would compute each block of a comparison on all cores,
    with threads that wait actively: a cosine takes four times as much CPU time. The executor's threads share the cores.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ["RUST_BACKTRACE"] = "0"
