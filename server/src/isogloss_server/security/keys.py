"""API keys: the file of their hashes, its reload, and the check of a call's key."""

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import ipaddress
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.errors import (
    KeyExpiredError,
    KeyInvalidError,
    KeyRequiredError,
    MethodNotAllowedError,
    SettingsError,
)
from isogloss_server.security.quotas import UNLIMITED, Quota
from isogloss_server.settings.declarations import Settings

Method: TypeAlias = Literal["Embed", "EmbedStream", "Similarity"]
METHODS: tuple[str, ...] = get_args(Method)  # those that a scope can name; a client needs the others to use these
RELOAD_S = 1.0
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_FIELD_CHARACTERS = 80  # of an unknown field, in a message
KEY = re.compile(r"isogloss_(?P<id>[0-9a-f]{16})_[A-Za-z0-9_-]{43}")
SCHEME = "bearer"  # https://www.rfc-editor.org/rfc/rfc6750#section-2.1
WRITABLE = stat.S_IWGRP | stat.S_IWOTH
MAX_QUOTA = 10**12

Limit = Annotated[int, Field(ge=0, le=MAX_QUOTA, strict=True)]


class Entry(BaseModel):
    """One key in the file. Empty scopes permit everything, quotas of 0 are none.

    A key has 256 random bits, so that a single SHA-256 protects it: there are no likely keys to try.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    models: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = ()
    methods: tuple[Method, ...] = ()
    texts_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    calls: Limit = 0
    created: AwareDatetime
    expires: AwareDatetime | None = None


class KeysFile(BaseModel):
    """The content of a keys file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    keys: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """The rights of a caller.

    Attributes:
        name: Name of the caller; several keys may have the same. Empty without a key.
        models: Names of the models that it may use; None for all.
        methods: Names of the methods of METHODS that it may call; None for all.
        quota: Its quota, which keys of one name share.
        id: Identifies the key; not secret.
        digest: SHA-256 of the key.
        expires_s: Seconds since 1970 from which on the key is not valid.
    """

    name: str = ""
    models: frozenset[str] | None = None
    methods: frozenset[str] | None = None
    quota: Quota = UNLIMITED
    id: str = ""
    digest: bytes = field(default=b"", repr=False)
    expires_s: float = math.inf

    def check_method(self, method: str) -> None:
        """Raises MethodNotAllowedError if the scope of the key does not have a method of METHODS."""
        if self.methods is not None and method in METHODS and method not in self.methods:
            allowed = ", ".join(sorted(self.methods))
            raise MethodNotAllowedError(f"the key may not call {method}; allowed: {allowed}", allowed=allowed)


ANYONE = Key()  # a caller of a server without keys
ANONYMOUS = Key(models=frozenset())  # a caller without a key, of a service that is open on a server with keys


def new_entry(now_s: float, **fields: Any) -> tuple[str, Entry]:
    """Returns a new key, and its entry with `fields`; the key is stored nowhere."""
    number = secrets.token_hex(8)
    key = f"isogloss_{number}_{secrets.token_urlsafe(32)}"
    created = datetime.fromtimestamp(int(now_s), UTC)
    return key, Entry(id=number, sha256=hashlib.sha256(key.encode()).hexdigest(), created=created, **fields)


def read(file: Path) -> tuple[Entry, ...]:
    """Returns the entries of a keys file.

    Raises:
        SettingsError: It cannot be read or is invalid, or others than its owner can write to it.
    """
    return _parse(file, _content(file))


@contextlib.contextmanager
def changed(file: Path) -> Iterator[list[Entry]]:
    """Yields the entries of a keys file, none if it does not exist, and then writes them, unless the block raises.

    The file is replaced as a whole, so that a server never reads half of it. Other processes that change it wait.

    Raises:
        SettingsError: The file is invalid, is a symbolic link, or cannot be written.
    """
    try:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SettingsError(f"cannot open the folder of the keys file {file}: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if file.is_symlink():
            raise SettingsError(f"keys file {file} is a symbolic link; name the file that it points to")
        entries = list(read(file)) if file.exists() else []
        yield entries
        _replace(file, KeysFile(version=1, keys=tuple(entries)), folder)
    except OSError as error:
        raise SettingsError(f"cannot write the keys file {file}: {error.strerror}") from None
    finally:
        os.close(folder)


def _replace(file: Path, content: KeysFile, folder: int) -> None:
    """Writes a file under another name, with mode 600 and the owner of the old file, and gives it the name."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}.part")
    text = json.dumps(content.model_dump(mode="json", exclude_defaults=True), indent=1)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            if file.exists() and os.geteuid() == 0:  # the server, which is not root, must be able to read it
                owner = file.stat()
                os.fchown(stream.fileno(), owner.st_uid, owner.st_gid)
            stream.write(f"{text}\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        os.fsync(folder)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _content(file: Path) -> bytes:
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            _check_access(file, os.fstat(stream.fileno()))
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read the keys file {file}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"keys file {file} is larger than {MAX_FILE_BYTES:,} bytes")
    return content


def _check_access(file: Path, status: os.stat_result) -> None:
    """Raises SettingsError if somebody else than this user and root could have written the file."""
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"keys file {file} is not a file")
    if status.st_uid not in {0, os.geteuid()}:
        raise SettingsError(f"keys file {file} belongs to another user than the server's")
    if status.st_mode & WRITABLE:
        raise SettingsError(f"its group or others can write to the keys file {file}; run: chmod go-w {file}")


def _parse(file: Path, content: bytes) -> tuple[Entry, ...]:
    try:
        entries = KeysFile.model_validate_json(content).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise SettingsError(f"keys file {file}: {_place(content, first['loc'])}{first['msg']}") from None
    known: set[str] = set()
    for number, entry in enumerate(entries, 1):
        if entry.id in known:
            raise SettingsError(f"keys file {file}: entry {number} ({entry.name}): id: another entry has it")
        known.add(entry.id)
    return entries


def _place(content: bytes, path: Sequence[int | str]) -> str:
    """Returns the place of an error in the file: the entry by number and name, and the field."""
    if len(path) < 2 or path[0] != "keys" or not isinstance(path[1], int):
        return "".join(f"{str(part)[:MAX_FIELD_CHARACTERS]}: " for part in path)
    entry = json.loads(content)["keys"][path[1]]
    name = entry.get("name") if isinstance(entry, dict) else None
    shown = f" ({name[:MAX_FIELD_CHARACTERS]!r})" if isinstance(name, str) else ""
    fields = "".join(f"{str(part)[:MAX_FIELD_CHARACTERS]}: " for part in path[2:])
    return f"entry {path[1] + 1}{shown}: {fields}"


def _key(entry: Entry) -> Key:
    quota = Quota(texts_per_minute=entry.texts_per_minute, tokens_per_minute=entry.tokens_per_minute, calls=entry.calls)
    return Key(
        name=entry.name,
        models=frozenset(entry.models) or None,
        methods=frozenset(entry.methods) or None,
        quota=UNLIMITED if quota == UNLIMITED else quota,
        id=entry.id,
        digest=bytes.fromhex(entry.sha256),
        expires_s=math.inf if entry.expires is None else entry.expires.timestamp(),
    )


class KeyRing:
    """The keys that a server accepts, as the file has them now."""

    def __init__(self, file: Path, clock: Clock) -> None:
        """Reads the file.

        Raises:
            SettingsError: See `read`.
        """
        self._file = file
        self._clock = clock
        self._decoy = Key(digest=secrets.token_bytes(32))  # compared with keys whose id is unknown
        self._seen: bytes | str = _content(file)  # the content of the last check, or its error
        self._keys: Mapping[str, Key] = {}
        self._set(_parse(file, self._seen))
        self._watching: asyncio.Task[None] | None = None

    @property
    def keys(self) -> Sequence[Key]:
        """All keys, expired ones included."""
        return tuple(self._keys.values())

    def authenticate(self, values: Sequence[str | bytes], *, optional: bool = False) -> Key:
        """Returns the key of a call.

        The time does not depend on how much of a key is right, nor on whether its id is known.

        Args:
            values: The values of the metadata "authorization".
            optional: Return ANONYMOUS if there is none.

        Raises:
            KeyRequiredError: There is none.
            KeyInvalidError: The key is unknown or malformed.
            KeyExpiredError: The key has expired.
        """
        if not values:
            if optional:
                return ANONYMOUS
            raise KeyRequiredError("an API key is required; send the metadata 'authorization: Bearer KEY'")
        text = _bearer(values)
        form = KEY.fullmatch(text)
        key = self._keys.get(form["id"], self._decoy) if form else self._decoy
        is_right = hmac.compare_digest(key.digest, hashlib.sha256(text.encode()).digest())
        if not is_right:
            raise _invalid()
        return self._unexpired(key)

    def current(self, key: Key) -> Key:
        """Returns the present rights of a key that was authenticated earlier, for a stream that lasts.

        Raises:
            KeyInvalidError: The key has been revoked since.
            KeyExpiredError: The key has expired since.
        """
        if not key.id:
            return key
        present = self._keys.get(key.id, self._decoy)
        if present.digest != key.digest:
            raise _invalid()
        return self._unexpired(present)

    def _unexpired(self, key: Key) -> Key:
        if self._clock.unix_s() >= key.expires_s:
            raise KeyExpiredError("the API key has expired; ask the operator of the server for a new one")
        return key

    def reload(self) -> None:
        """Reads the file again if it has changed; keeps the keys, with a warning, if it is missing or damaged."""
        try:
            seen: bytes | str = _content(self._file)
        except SettingsError as error:
            seen = str(error)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            if isinstance(seen, str):
                raise SettingsError(seen)  # noqa: TRY301 - as if it had been raised below
            self._set(_parse(self._file, seen))
        except SettingsError as error:
            logs.warning("keys file not reloaded; the keys read before stay valid", cause=str(error))

    def _set(self, entries: Sequence[Entry]) -> None:
        self._keys = {entry.id: _key(entry) for entry in entries}
        logs.info("keys loaded", file=self._file, keys=len(entries), names=len({entry.name for entry in entries}))

    def start(self) -> None:
        """Reloads the file from now on, within RELOAD_S of a change."""
        self._watching = asyncio.create_task(self._watch())

    def close(self) -> None:
        """Ends the reloading."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(RELOAD_S)
            try:
                # Its content is compared, since a file system may not see two changes in a short time as different.
                await asyncio.get_running_loop().run_in_executor(None, self.reload)
            except Exception as error:  # noqa: BLE001 - the next check may succeed
                logs.internal_error(error)


def _bearer(values: Sequence[str | bytes]) -> str:
    """Returns the key in the metadata "authorization", or an empty string if it is malformed."""
    value = values[0]
    if len(values) > 1 or not isinstance(value, str):
        return ""
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == SCHEME else ""


def _invalid() -> KeyInvalidError:
    return KeyInvalidError("the API key is not valid")


# What protects a server that other machines can reach: a test of the settings, and the flags to set.
PROTECTIONS: tuple[tuple[Callable[[Settings], bool], str], ...] = (
    (lambda settings: settings.uses_tls, "TLS (--tls-cert and --tls-key)"),
    (
        lambda settings: settings.keys_file is not None or settings.tls_client_ca is not None,
        "keys of callers (--keys-file) or their certificates (--tls-client-ca)",
    ),
)


def check_security(settings: Settings) -> None:
    """Raises SettingsError if a protection is missing that `require_security` requires."""
    missing = insecurities(settings)
    if missing and settings.require_security:
        raise SettingsError(f"require_security: {settings.host} can be reached without {' and '.join(missing)}")


def warn_of_insecurities(settings: Settings) -> None:
    """Logs the protections that a server lacks which other machines can reach, if there are any."""
    if missing := insecurities(settings):
        where, names = settings.host, ", ".join(missing)
        logs.warning("other machines can reach this server unprotected", host=where, missing=names)


def insecurities(settings: Settings) -> list[str]:
    """Returns the protections that the settings lack, none if the server listens for this machine alone."""
    if _is_loopback(settings.host):
        return []
    return [name for is_set, name in PROTECTIONS if not is_set(settings)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
