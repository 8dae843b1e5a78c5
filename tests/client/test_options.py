"""ClientOptions: validation, and the channel arguments made from them."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import trustme
from isogloss import AsyncClient, Client, ClientOptions, UnavailableError
from isogloss._channel import address, arguments
from isogloss.testing import FakeServer


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:50051", "dns:///localhost:50051"),
        ("[::1]:50051", "dns:///[::1]:50051"),
        ("embeddings:443", "dns:///embeddings:443"),
        ("unix:50051", "unix:50051"),
        ("dns:///host:1", "dns:///host:1"),
        ("dns://8.8.8.8/host:1", "dns://8.8.8.8/host:1"),
        ("unix:/run/isogloss.sock", "unix:/run/isogloss.sock"),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
    ],
)
def test_targets_without_a_scheme_are_resolved_by_dns(target: str, expected: str) -> None:
    """A plain host is resolved by DNS, so that all its addresses are used; other schemes remain."""
    assert address(ClientOptions(target=target)) == expected


def test_the_channel_uses_all_addresses() -> None:
    """Channels use round robin, and leave retries to the client."""
    config = json.loads(str(dict(arguments(ClientOptions()))["grpc.service_config"]))
    assert config == {"loadBalancingConfig": [{"round_robin": {}}]}


def test_a_dead_connection_is_detected_within_a_default_call() -> None:
    """Both timeouts for the reply to a ping are set, and with the defaults a retry still fits into the call."""
    options = ClientOptions()
    settings = dict(arguments(replace(options, keepalive_timeout_s=3.5)))
    assert settings["grpc.keepalive_timeout_ms"] == settings["grpc.http2.ping_timeout_ms"] == 3_500
    assert "grpc.keepalive_permit_without_calls" not in settings
    assert options.keepalive_s + options.keepalive_timeout_s < options.timeout_s / 2


@pytest.mark.parametrize(
    "target",
    [
        "embeddings",
        "dns:///embeddings",
        "[::1]",
        "ipv4:10.0.0.1:1,10.0.0.2",
        "localhost:0",
        "localhost:65536",
        "localhost:70000",
        "localhost:99999999999",
        "localhost:-1",
        "localhost:",
        ":50051",
        "::1:50051",
        "http://localhost:50051",
        "https://localhost:50051/path",
        "grpc://localhost:50051",
        "grpcs://localhost:50051",
        "tcp://localhost:50051",
        "user@localhost:50051",
        "local host:50051",
        "localhost:50051,localhost:50052",
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_targets_that_grpc_would_take_for_another_address_are_refused(kind: Any, target: str) -> None:
    """A URL, an unknown scheme, and a port that is missing or out of range raise ValueError, which names the target."""
    with pytest.raises(ValueError, match=r"^target "):
        kind(target)


@pytest.mark.parametrize(
    ("target", "options", "used"),
    [
        ("embeddings.internal:50051", {}, False),
        ("embeddings.internal:50051", {"tls": True}, True),
        ("embeddings.internal:50051", {"http_proxy": True}, True),
        ("embeddings.internal:50051", {"tls": True, "http_proxy": False}, False),
        ("localhost:50051", {"tls": True}, False),
        ("127.0.0.2:50051", {"tls": True}, False),
        ("[::1]:50051", {"tls": True}, False),
        ("ipv6:[::1]:50051", {"tls": True}, False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", {"tls": True}, True),
        ("unix:/run/isogloss.sock", {"tls": True}, False),
        ("localhost:50051", {"http_proxy": True}, True),
    ],
)
def test_a_proxy_is_used_only_if_it_cannot_read_texts(target: str, options: dict[str, Any], used: bool) -> None:
    """The proxy of the environment is used with TLS to other machines, unless the option says otherwise."""
    assert dict(arguments(ClientOptions(target=target, **options)))["grpc.enable_http_proxy"] == int(used)


def test_a_call_to_the_same_machine_does_not_go_through_a_proxy(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment, which refuses connections, fails no call unless the options ask for it."""
    with FakeServer() as stopped:
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://{stopped.target}")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(server.target) as client:
        assert len(client.embed(["a"])) == 1
    asking = ClientOptions(target=server.target, http_proxy=True)
    with Client(options=asking) as client, pytest.raises(UnavailableError):
        client.embed(["a"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", ""),
        ("root_certificates", b"PEM"),
        ("api_key", ""),
        ("api_key", "sch\u00f6n"),
        ("api_key", "a\nb"),
        ("timeout_s", 0),
        ("timeout_s", float("inf")),
        ("timeout_s", float("nan")),
        ("attempts", 0),
        ("attempts", 6),
        ("keepalive_s", 1),
        ("keepalive_timeout_s", 0),
        ("wait_for_ready", None),
        ("http_proxy", "http://proxy:3128"),
        ("max_receive_bytes", 0),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: Any) -> None:
    """An option out of range raises ValueError, which names it; an API key is not quoted."""
    with pytest.raises(ValueError, match=name) as raised:
        ClientOptions(**{name: value})
    assert name != "api_key" or not value or value not in str(raised.value)


PAIR = trustme.CA().issue_cert("client")
CERTIFICATE, KEY = PAIR.cert_chain_pems[0].bytes(), PAIR.private_key_pem.bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls": False, "client_certificate": CERTIFICATE, "client_key": KEY}, "client_certificate requires tls=True"),
        ({"tls": False, "server_name": "a.example"}, "server_name requires tls=True"),
        ({"client_certificate": CERTIFICATE}, "client_certificate requires client_key"),
        ({"client_key": KEY}, "client_key requires client_certificate"),
        ({"root_certificates": b""}, "root_certificates must consist of certificates in PEM"),
        ({"root_certificates": CERTIFICATE[:100]}, "root_certificates must consist of certificates in PEM"),
        ({"root_certificates": KEY}, "root_certificates must consist of certificates in PEM"),
        ({"client_certificate": KEY, "client_key": KEY}, "client_certificate must consist of certificates in PEM"),
        (
            {"client_certificate": CERTIFICATE, "client_key": CERTIFICATE},
            "client_key must be a private key in PEM, not encrypted",
        ),
        (
            {"client_certificate": CERTIFICATE, "client_key": KEY.replace(b"BEGIN", b"BEGIN ENCRYPTED")},
            "client_key must be a private key in PEM, not encrypted",
        ),
        (
            {"client_certificate": CERTIFICATE, "client_key": KEY.replace(b"KEY-----\n", b"KEY-----\nProc-Type: 4\n")},
            "client_key must be a private key in PEM, not encrypted",
        ),
        ({"client_certificate": CERTIFICATE.decode(), "client_key": KEY}, "client_certificate must be bytes, not str"),
        ({"server_name": ""}, "server_name must be a host name, not ''"),
        ({"server_name": "a b"}, "server_name must be a host name, not 'a b'"),
    ],
)
def test_invalid_options_of_tls_are_refused(options: dict[str, Any], message: str) -> None:
    """The error names the option, and quotes no certificate and no key."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ClientOptions(**{"tls": True, **options})


def test_the_key_of_a_client_is_in_no_repr() -> None:
    """The options can be logged."""
    shown = repr(ClientOptions(tls=True, client_certificate=CERTIFICATE, client_key=KEY))
    assert "PRIVATE KEY" not in shown
    assert "CERTIFICATE" not in shown


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_option_given_to_the_client_names_client_options(kind: Any) -> None:
    """A TypeError names the class that was called, and ClientOptions as the place of an option."""
    with pytest.raises(TypeError) as raised:
        kind("localhost:1", timeout_s=3)
    expected = f"{kind.__name__}() got an unexpected keyword argument 'timeout_s'; pass it in the options: "
    assert str(raised.value) == f"{expected}{kind.__name__}(options=ClientOptions(timeout_s=...))"
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'colour'$"):
        kind("localhost:1", colour="red")
