"""ClientOptions: the connection settings of a client, as one frozen value."""

import math
from dataclasses import dataclass, field

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Connection settings of a client. The defaults suit a server on the same machine.

    Attributes:
        target: Address of the server: "host:port", or any gRPC name ("dns:///host:port", "unix:/path",
            "ipv4:10.0.0.1:50051,10.0.0.2:50051"). Requests go to all addresses of a name in turn (round robin).
        tls: Encrypt the connection, and check the server's certificate against its host name.
        root_certificates: Certificate authorities to trust, in PEM; None selects those shipped with gRPC. Needs tls.
        api_key: Sent with every call as `authorization: Bearer KEY`; None sends none. Without tls, the network can
            read it.
        timeout_s: Time limit in seconds for a whole call, including retries and all parts of a split call.
        attempts: Attempts per request while the server is unavailable or overloaded, 1 to 5; 1 disables retries.
        keepalive_s: Seconds without traffic during a call after which the client pings the server, at least 10. By
            default gRPC servers close connections that are pinged more often than every 300 s ("too_many_pings").
        keepalive_timeout_s: Seconds to wait for the reply to a ping before the connection counts as lost.
        max_receive_bytes: Largest response to accept. Should exceed the server's max_response_bytes.

    Raises:
        ValueError: A field has the wrong type or is out of range; the message names it.
    """

    target: str = "localhost:50051"
    tls: bool = False
    root_certificates: bytes | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    attempts: int = 4
    keepalive_s: float = 300.0
    keepalive_timeout_s: float = 20.0
    max_receive_bytes: int = 256 * MEBIBYTE

    def __post_init__(self) -> None:
        self._check_types()
        if not self.target or self.target.startswith(("http:", "https:")):
            raise ValueError(f"target must have the form 'host:port', such as 'localhost:50051', not {self.target!r}")
        if self.root_certificates is not None and not self.tls:
            raise ValueError("root_certificates requires tls=True")
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
        for name, expected in (("target", str), ("tls", bool), ("root_certificates", bytes), ("api_key", str)):
            value = getattr(self, name)
            if not isinstance(value, expected) and (value is not None or name in ("target", "tls")):
                raise ValueError(f"{name} must be {expected.__name__}, not {type(value).__name__}")
        if not self.target.isprintable():  # unpaired surrogates included, which UTF-8 cannot encode
            raise ValueError(f"target must consist of printable characters, not {self.target!r}")

    def _check_range(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, not {type(value).__name__}")  # noqa: TRY004 - one type of error for all options
        if not (least <= value <= most and math.isfinite(value)):
            limit = f"between {least:g} and {most:g}" if math.isfinite(most) else f"finite and at least {least:g}"
            raise ValueError(f"{name} must be {limit}, not {value!r}")
