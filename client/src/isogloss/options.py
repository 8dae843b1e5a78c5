"""ClientOptions: the connection settings of a client, as one frozen value."""

import ipaddress
import math
import re
import ssl
from dataclasses import dataclass, field

MEBIBYTE = 2**20
MAX_PORT = 2**16 - 1
# gRPC's schemes: those with "host:port" addresses, and others.
IP_SCHEMES = frozenset({"dns", "ipv4", "ipv6"})
SCHEMES = IP_SCHEMES | {"unix", "unix-abstract", "vsock", "xds", "google-c2p"}
ADDRESS = re.compile(r"(?P<host>\[[^\[\]/@]+\]|[^\[\]:/@?#\s]+):(?P<port>[0-9]{1,9})")

TLS_FIELDS = ("root_certificates", "client_certificate", "client_key", "server_name")
# PKCS#8, PKCS#1 and SEC1. Encrypted keys differ in the first line, or have a header before the data.
PRIVATE_KEY = re.compile(rb"-----BEGIN ((RSA|EC) )?PRIVATE KEY-----\s+[A-Za-z0-9+/]+=*\s")
SERVER_NAME = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


def split_target(target: str) -> tuple[str, str]:
    """Returns the scheme of `target`, which is empty if it has none of gRPC's, and the addresses without it.

    Only the schemes of gRPC count as schemes, because "localhost:50051" has the form of one too.
    """
    scheme, _, rest = target.partition(":")
    if scheme not in SCHEMES:
        return "", target
    if rest.startswith("//"):  # an authority follows, such as the name server in "dns://8.8.8.8/host:1"
        rest = rest[2:].partition("/")[2]
    return scheme, rest


def is_loopback(target: str) -> bool:
    """Returns True if no address of `target` is on another machine, as far as can be seen without resolving it."""
    scheme, addresses = split_target(target)
    if scheme and scheme not in IP_SCHEMES:
        return scheme.startswith("unix")
    hosts = [address.rpartition(":")[0].strip("[]").lower() for address in addresses.split(",")]
    return all(host == "localhost" or host.endswith(".localhost") or _is_loopback_ip(host) for host in hosts)


def _is_loopback_ip(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _are_certificates(pem: bytes) -> bool:
    try:
        # Text around certificates may be UTF-8.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii", "backslashreplace"))
    except (ssl.SSLError, ValueError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Connection settings of a client. The defaults suit a server on the same machine.

    Attributes:
        target: Address of the server: "host:port", or any gRPC name ("dns:///host:port", "unix:/path",
            "ipv4:10.0.0.1:50051,10.0.0.2:50051"), but not a URL. Requests go to all addresses of a name in turn (round
            robin).
        tls: Encrypt the connection, and check the server's certificate against its host name.
        root_certificates: Certificate authorities to trust, in PEM; None selects those shipped with gRPC. Needs tls,
            like the next three.
        client_certificate: Certificate of this client in PEM, followed by those between it and the root, for servers
            that require one. Needs client_key.
        client_key: Private key of the client certificate in PEM, not encrypted.
        server_name: Name to check the server's certificate against, and to send as the authority, instead of the host
            in target; for tests and tunnels.
        api_key: Sent with every call as `authorization: Bearer KEY`; None sends none. Without tls, the network can
            read it.
        timeout_s: Time limit in seconds for a whole call, including retries and all parts of a split call.
        attempts: Attempts per request while connections are lost or the server is overloaded, 1 to 5; 1 disables
            retries, and fails at once if there is no connection. Attempts that a starting or stopping server refuses
            do not count.
        wait_for_ready: True waits for the first connection until the deadline of the call. False raises
            UnavailableError within 2 seconds if nothing listens at the target. Later calls always wait for a
            connection that was lost, such as during a restart of the server.
        keepalive_s: Seconds without traffic during a call after which the client pings the server, at least 10. An
            Isogloss server accepts that; servers with gRPC's defaults close connections that are pinged more often
            than every 300 s ("too_many_pings").
        keepalive_timeout_s: Seconds to wait for the reply to a ping before the connection counts as lost.
        http_proxy: True connects through the proxy in the environment (grpc_proxy, https_proxy or http_proxy, except
            for hosts in no_proxy), False never. None does so with tls only, and not to the same machine: without tls
            the proxy can read all texts.
        max_receive_bytes: Largest response to accept. Should exceed the server's max_response_bytes.

    Raises:
        ValueError: A field has the wrong type or is out of range; the message names it.
    """

    target: str = "localhost:50051"
    tls: bool = False
    root_certificates: bytes | None = field(default=None, repr=False)
    client_certificate: bytes | None = field(default=None, repr=False)
    client_key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    attempts: int = 4
    wait_for_ready: bool = False
    keepalive_s: float = 15.0
    keepalive_timeout_s: float = 10.0
    http_proxy: bool | None = None
    max_receive_bytes: int = 256 * MEBIBYTE

    def __post_init__(self) -> None:
        self._check_types()
        self._check_target()
        self._check_tls()
        # Checked here because the error of grpc, raised by the first call, quotes the key.
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("api_key must consist of printable ASCII characters and must not be empty")
        self._check_range("timeout_s", 0.001, math.inf)
        self._check_range("attempts", 1, 5)  # gRPC caps maxAttempts at 5
        self._check_range(
            "keepalive_s", 10, 2**21
        )  # gRPC raises smaller values to 10, and keeps milliseconds in 32 bits
        self._check_range("keepalive_timeout_s", 0.001, 2**21)
        self._check_range("max_receive_bytes", 1, 2**31 - 1)

    def _check_types(self) -> None:
        required = {"target": str, "tls": bool, "wait_for_ready": bool}
        optional = {
            "root_certificates": bytes,
            "client_certificate": bytes,
            "client_key": bytes,
            "server_name": str,
            "api_key": str,
            "http_proxy": bool,
        }
        for name, expected in (required | optional).items():
            value = getattr(self, name)
            if not isinstance(value, expected) and (value is not None or name in required):
                raise ValueError(f"{name} must be {expected.__name__}, not {type(value).__name__}")
        if not self.target.isprintable():  # unpaired surrogates included, which UTF-8 cannot encode
            raise ValueError(f"target must consist of printable characters, not {self.target!r}")

    def _check_target(self) -> None:
        scheme, addresses = split_target(self.target)
        if scheme and scheme not in IP_SCHEMES:
            return
        for address in addresses.split(",") if scheme.startswith("ip") else [addresses]:
            found = ADDRESS.fullmatch(address)
            if found is None and ADDRESS.fullmatch(f"{address}:1"):  # gRPC would silently use port 443
                raise ValueError(f"target has no port; write it as '{address}:50051', not {self.target!r}")
            if found is None:
                form = "must have the form 'host:port', such as 'localhost:50051' or '[::1]:50051'"
                raise ValueError(f"target {form}, not {self.target!r}; for TLS, set tls=True")
            if not 1 <= int(found["port"]) <= MAX_PORT:
                raise ValueError(f"target must have a port between 1 and {MAX_PORT}, not {found['port']}")

    def _check_tls(self) -> None:
        for name in TLS_FIELDS:
            if getattr(self, name) is not None and not self.tls:
                raise ValueError(f"{name} requires tls=True")
        for name, other in (("client_certificate", "client_key"), ("client_key", "client_certificate")):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(f"{name} requires {other}")
        # Checked here because gRPC reports no cause: each call would fail as if the server were not reachable.
        for name in ("root_certificates", "client_certificate"):
            pem = getattr(self, name)
            if pem is not None and not _are_certificates(pem):
                raise ValueError(f"{name} must consist of certificates in PEM")
        if self.client_key is not None and not PRIVATE_KEY.search(self.client_key):
            raise ValueError("client_key must be a private key in PEM, not encrypted")
        if self.server_name is not None and not SERVER_NAME.fullmatch(self.server_name):
            raise ValueError(f"server_name must be a host name, not {self.server_name!r}")

    def _check_range(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, not {type(value).__name__}")  # noqa: TRY004 - one type of error for all options
        if not (least <= value <= most and math.isfinite(value)):
            limit = f"between {least:g} and {most:g}" if math.isfinite(most) else f"finite and at least {least:g}"
            raise ValueError(f"{name} must be {limit}, not {value!r}")
