"""TLS and mutual TLS from PEM files, which are loaded again when they change; names of client certificates.

The files are checked by OpenSSL, because gRPC reports neither what is wrong with them nor that it keeps earlier ones.
"""

import asyncio
import contextlib
import os
import ssl
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.errors import SettingsError
from isogloss_server.metrics import TLS_NOT_AFTER, TLS_RELOADS
from isogloss_server.settings.declarations import Settings

CHECK_S = 1.0  # between two readings of the files
MAX_FILE_BYTES = 2 * 1024 * 1024  # of a file: the authorities that browsers trust are a tenth of it
READ_ATTEMPTS = 3  # of files that change while they are read
WARNING_S = 14 * 86_400.0  # before the certificate expires; of one with a short lifetime, the last fifth of that
WARNING_SHARE = 1 / 5
MAX_NAME_CHARACTERS = 256
NAME_FIELDS = ("peer_uri", "peer_dns", "x509_common_name")  # of gRPC's auth_context, in order of precedence
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
CERTIFICATE, KEY, CLIENT_CA = "--tls-cert", "--tls-key", "--tls-client-ca"
# The beginning of a public key in a certificate (RFC 5280, SubjectPublicKeyInfo), of the kinds that gRPC's clients
# accept. With any other kind, such as Ed25519, all handshakes fail without a reason.
SUPPORTED_KEYS = {
    "RSA": bytes.fromhex("300d06092a864886f70d0101010500"),
    "ECDSA with P-256": bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"),
    "ECDSA with P-384": bytes.fromhex("301006072a8648ce3d020106052b81040022"),
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files that the settings name.

    Attributes:
        certificate: The certificate, then those of the authorities between it and the root.
        key: Its private key.
        client_ca: The authorities of clients' certificates; None if clients need no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None

    def read(self) -> "TlsContents":
        """Reads the files; raises SettingsError if one of them cannot be read."""
        client_ca = None if self.client_ca is None else _read(CLIENT_CA, self.client_ca)
        return TlsContents(_read(CERTIFICATE, self.certificate), _read(KEY, self.key), client_ca)


@dataclass(frozen=True, slots=True, repr=False)
class TlsContents:
    """The contents of the files, in PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LoadedTls:
    """Contents that OpenSSL accepts.

    Attributes:
        contents: The contents.
        context: TLS of a port for Python's own servers.
        configuration: TLS of a port for gRPC.
        begin_s: Moment in Unix time from which on the certificate is valid; likewise its end, `end_s`.
        client_ca_end_s: Moment at which the first of the authorities of clients expires.
    """

    contents: TlsContents
    context: ssl.SSLContext
    configuration: grpc.ServerCertificateConfiguration
    begin_s: float
    end_s: float
    client_ca_end_s: float | None

    def expiry_warning(self, now_s: float) -> str:
        """Returns a warning if the certificate is not valid, or is about to expire."""
        if now_s >= self.end_s:
            return "the TLS certificate has expired"
        if now_s < self.begin_s:
            return "the TLS certificate is not valid yet"
        is_near = self.end_s - now_s < min(WARNING_S, (self.end_s - self.begin_s) * WARNING_SHARE)
        return "the TLS certificate expires soon" if is_near else ""


class Certificates:
    """The certificate of the ports, which follows its files."""

    def __init__(self, files: TlsFiles, clock: Clock) -> None:
        """Loads the files; raises SettingsError if they are missing or damaged."""
        self._files = files
        self._clock = clock
        self._loaded = _load_unchanged(files)
        self._fetched: LoadedTls | None = None  # by gRPC
        self._seen: TlsContents | str = self._loaded.contents  # at the last check, or why they cannot be read
        self._refused: TlsContents | str | None = None  # what the last warning is about
        self._warning = ""  # about the expiry, logged last
        self._watching: asyncio.Task[None] | None = None
        self._publish()

    def start(self) -> None:
        """Starts to follow the files, on the running event loop."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def close(self) -> None:
        """Stops following the files."""
        if self._watching is not None:
            self._watching.cancel()

    def context(self) -> ssl.SSLContext:
        """Returns the context for new connections to one of Python's own servers."""
        return self._loaded.context

    def credentials(self) -> grpc.ServerCredentials:
        """Returns credentials for one gRPC server, which asks for the certificate with each new connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            self._fetch,
            require_client_authentication=self._files.client_ca is not None,
        )

    def _fetch(self) -> Any:  # the type stubs leave out None
        """Returns a configuration that gRPC does not have, or None; called on gRPC's threads."""
        loaded = self._loaded
        if loaded is self._fetched:
            return None
        self._fetched = loaded
        return loaded.configuration

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(CHECK_S)
            try:
                await asyncio.to_thread(self.check)
            except Exception as error:  # noqa: BLE001 - the next change of the files may be one that works
                logs.internal_error(error)

    def check(self) -> None:
        """Loads the files again if they have changed, and are the same as at the last check, so that all are written.

        If they are damaged, the server keeps what it has, and logs a warning once.
        """
        contents = _contents_or_cause(self._files)
        is_settled, self._seen = contents == self._seen, contents
        if contents == self._loaded.contents:
            self._refused = None
        elif is_settled and contents != self._refused:
            self._reload(contents)
        self._warn_of_expiry()

    def _reload(self, contents: TlsContents | str) -> None:
        try:
            self._loaded = _load_unchanged(self._files)
        except SettingsError as error:
            self._refused = contents
            TLS_RELOADS.labels("failed").inc()
            logs.warning("TLS files are not loaded again; the server keeps the certificate it has", cause=str(error))
            return
        self._refused, self._warning = None, ""
        TLS_RELOADS.labels("ok").inc()
        self._publish()
        logs.info("TLS files loaded again", certificate=self._files.certificate, valid_days=self._valid_days())

    def _publish(self) -> None:
        """Sets the metrics, and logs what an operator should look at."""
        TLS_NOT_AFTER.labels("server").set(self._loaded.end_s)
        if self._loaded.client_ca_end_s is not None:
            TLS_NOT_AFTER.labels("client_ca").set(self._loaded.client_ca_end_s)
        with contextlib.suppress(OSError):  # a file that was removed after it was read
            if self._files.key.stat().st_mode & stat.S_IROTH:
                logs.warning("all users of this machine can read the key of TLS; chmod o-r", file=self._files.key)
        self._warn_of_expiry()

    def _warn_of_expiry(self) -> None:
        """Logs a warning when the certificate begins to be invalid, or about to expire."""
        warning = self._loaded.expiry_warning(self._clock.unix_s())
        if warning and warning != self._warning:
            logs.warning(warning, certificate=self._files.certificate, valid_days=self._valid_days())
        self._warning = warning

    def _valid_days(self) -> float:
        return round((self._loaded.end_s - self._clock.unix_s()) / 86_400, 2)


def load(settings: Settings, clock: Clock) -> Certificates | None:
    """Loads the files that the settings name.

    Returns:
        The certificate of the ports, or None if they use plain text.

    Raises:
        SettingsError: A file is not named, missing or damaged.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        named = {CERTIFICATE: settings.tls_cert, KEY: settings.tls_key, CLIENT_CA: settings.tls_client_ca}
        given = [flag for flag, file in named.items() if file is not None]
        if given:
            raise SettingsError(f"{given[0]} requires a certificate and its key: set both {CERTIFICATE} and {KEY}")
        return None
    return Certificates(TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca), clock)


def client_name(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """Returns the name in a verified client certificate: its first URI or DNS name, or its common name.

    Args:
        auth_context: What gRPC knows of the peer; it has names only if the certificate was verified.

    Returns:
        The name, or "" if there is none, or if it is not one of at most 256 printable ASCII characters.
    """
    for field in NAME_FIELDS:
        for value in auth_context.get(field) or ():
            name = value.decode("latin-1")
            is_valid = name.isascii() and name.isprintable() and len(name) <= MAX_NAME_CHARACTERS
            return name if is_valid else ""
    return ""


def _read(flag: str, file: Path) -> bytes:
    """Returns the contents of a regular file; raises SettingsError."""
    try:
        with open(file, "rb", opener=partial(_open, flag)) as stream:
            contents = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read the file of {flag}, {file}: {error.strerror}") from None
    if len(contents) > MAX_FILE_BYTES:
        raise SettingsError(f"the file of {flag}, {file}, is larger than {MAX_FILE_BYTES:,} bytes")
    return contents


def _open(flag: str, file: str, flags: int) -> int:
    """Opens a file that can be read again and again, so no pipe, whose opening could also wait forever."""
    descriptor = os.open(file, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SettingsError(f"the file of {flag}, {file}, must be a regular file")
    return descriptor


def _contents_or_cause(files: TlsFiles) -> TlsContents | str:
    try:
        return files.read()
    except SettingsError as error:
        return str(error)


def _load_unchanged(files: TlsFiles) -> LoadedTls:
    """Loads files that have not changed until the last one was read; tries again if they have.

    Raises:
        SettingsError: A file is missing or damaged, or they keep changing.
    """
    for _ in range(READ_ATTEMPTS):
        failure = None
        contents = files.read()
        try:
            loaded = _load(files, contents)
        except SettingsError as error:
            failure = error
        if files.read() == contents:
            if failure is not None:
                raise failure
            return loaded
    raise SettingsError(f"the files of {CERTIFICATE} and {KEY} change while they are read; try again")


def _load(files: TlsFiles, contents: TlsContents) -> LoadedTls:
    """Checks contents, and prepares TLS with them; raises SettingsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    authorities = _trusting(CERTIFICATE, files.certificate, contents.certificate)
    try:
        # OpenSSL reads keys from files only. The caller checks that the files have not changed meanwhile.
        context.load_cert_chain(files.certificate, files.key, password=partial(_refuse_password, files))
    except ssl.SSLError as error:
        raise SettingsError(_cause(files, error)) from None
    except OSError as error:
        raise SettingsError(f"cannot read the file of {CERTIFICATE} or {KEY}: {error.strerror}") from None
    certificate = _shake_hands(files, context, authorities)
    client_ca_end_s = None
    if files.client_ca is not None and contents.client_ca is not None:
        _trusting(CLIENT_CA, files.client_ca, contents.client_ca, context)
        ends = [ssl.cert_time_to_seconds(str(authority["notAfter"])) for authority in context.get_ca_certs()]
        if not ends:
            raise SettingsError(f"the file of {CLIENT_CA}, {files.client_ca}, has no certificate of an authority")
        context.verify_mode = ssl.CERT_REQUIRED
        client_ca_end_s = float(min(ends))
    pair = (contents.key, contents.certificate)
    return LoadedTls(
        contents,
        context,
        grpc.ssl_server_certificate_configuration([pair], contents.client_ca),
        float(ssl.cert_time_to_seconds(certificate["notBefore"])),
        float(ssl.cert_time_to_seconds(certificate["notAfter"])),
        client_ca_end_s,
    )


def _trusting(flag: str, file: Path, contents: bytes, context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """Returns a context that trusts the certificates in PEM; raises SettingsError."""
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=contents.decode("ascii", "backslashreplace"))  # comments may be UTF-8
    except (ssl.SSLError, ValueError):
        raise SettingsError(f"the file of {flag}, {file}, does not consist of certificates in PEM") from None
    return context


def _shake_hands(files: TlsFiles, server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Makes a connection in memory, as a client would that trusts the certificate.

    Args:
        files: The files, for the error.
        server: The context of the port.
        client: A context that trusts the certificate.

    Returns:
        The certificate.

    Raises:
        SettingsError: Clients would refuse it.
    """
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_end = client.wrap_bio(to_client, to_server)
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for end in (client_end, server_end, client_end):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        certificate: Any = client_end.getpeercert()
        key = client_end.getpeercert(binary_form=True) or b""
    except (ssl.SSLError, ValueError) as error:
        cause = getattr(error, "verify_message", "") or getattr(error, "reason", "") or "the handshake does not end"
        raise SettingsError(f"TLS clients would refuse {CERTIFICATE} {files.certificate}: {cause}") from None
    if not any(beginning in key for beginning in SUPPORTED_KEYS.values()):
        kinds = ", ".join(SUPPORTED_KEYS)
        raise SettingsError(f"unsupported kind of key in {CERTIFICATE} {files.certificate}; supported: {kinds}")
    return certificate  # type: ignore[no-any-return]


def _cause(files: TlsFiles, error: ssl.SSLError) -> str:
    """Returns why OpenSSL refuses a certificate, all of which is PEM, with its key."""
    reason = error.reason or ""
    if reason == "KEY_VALUES_MISMATCH":
        return f"the key of {KEY}, {files.key}, does not belong to {CERTIFICATE} {files.certificate}"
    if "SMALL" in reason or "WEAK" in reason:
        words = reason.lower().replace("_", " ")
        return f"the certificate of {CERTIFICATE}, {files.certificate}, is not secure: {words}"
    return f"the file of {KEY}, {files.key}, is not a private key in PEM"


def _refuse_password(files: TlsFiles) -> str:
    raise SettingsError(f"the key of {KEY}, {files.key}, is encrypted; a server needs one without a passphrase")
