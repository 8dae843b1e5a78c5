"""How a client reaches its server, as one frozen value."""

import math
from dataclasses import dataclass, field

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """How to reach a server, and how patient to be. Every field has a default that suits a server on this machine.

    Attributes:
        target: Where the server listens: "host:port", or any name that gRPC resolves ("dns:///host:port",
            "unix:/path", "ipv4:10.0.0.1:50051,10.0.0.2:50051"). A host with several addresses is used in turn.
        tls: Whether to encrypt. The server's certificate is checked against its host name.
        root_certificates: The authorities to trust, in PEM; None = those that gRPC ships. Needs tls.
        api_key: Sent with every call as `authorization: Bearer KEY`; None = no key. Without tls it crosses the
            network readable by anyone on the way.
        timeout_s: Seconds a whole call may take, its retries and the parts that it is split into included.
        attempts: How often to try, the first time included, where the server is unavailable or overloaded; 1 to 5.
        keepalive_s: Seconds of silence in a running call after which the connection is tested, at least 10. Servers
            of gRPC take tests more frequent than every 300 for an attack, unless they are told otherwise.
        keepalive_timeout_s: Seconds that a connection has to answer the test before it counts as dead.
        max_receive_bytes: The largest answer to accept. Should be above the server's max_response_bytes.
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
        self._check_kinds()
        if not self.target or self.target.startswith(("http:", "https:")):
            raise ValueError(f"target must be such as 'localhost:50051', not {self.target!r}")
        if self.root_certificates is not None and not self.tls:
            raise ValueError("root_certificates need tls=True")
        # Checked here, for grpc would refuse the key at the first call, quoting it.
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("api_key must be printable ASCII characters, at least one")
        self._check("timeout_s", 0.001, math.inf)
        self._check("attempts", 1, 5)  # gRPC tries no more than 5 times, whatever it is told
        self._check("keepalive_s", 10, 2**21)  # gRPC lifts smaller values to 10, and counts milliseconds in 32 bits
        self._check("keepalive_timeout_s", 0.001, 2**21)
        self._check("max_receive_bytes", 1, 2**31 - 1)

    def _check_kinds(self) -> None:
        for name, kind in (("target", str), ("tls", bool), ("root_certificates", bytes), ("api_key", str)):
            value = getattr(self, name)
            if not isinstance(value, kind) and (value is not None or name in ("target", "tls")):
                raise ValueError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
        if not self.target.isprintable():  # among them half a surrogate pair, which UTF-8 cannot write
            raise ValueError(f"target must be printable characters, not {self.target!r}")

    def _check(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, not {type(value).__name__}")  # noqa: TRY004 - one kind for all
        if not (least <= value <= most and math.isfinite(value)):
            limit = f"from {least:g} to {most:g}" if math.isfinite(most) else f"finite and at least {least:g}"
            raise ValueError(f"{name} must be {limit}, not {value!r}")
