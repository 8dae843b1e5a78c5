"""ClientOptions: validation, and the channel arguments made from them."""

import json
from typing import Any

import pytest
from isogloss import AsyncClient, Client, ClientOptions
from isogloss._channel import address, arguments


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:50051", "dns:///localhost:50051"),
        ("[::1]:50051", "dns:///[::1]:50051"),
        ("embeddings", "dns:///embeddings"),
        ("dns:///host:1", "dns:///host:1"),
        ("dns://8.8.8.8/host:1", "dns://8.8.8.8/host:1"),
        ("unix:/run/isogloss.sock", "unix:/run/isogloss.sock"),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
    ],
)
def test_targets_without_a_scheme_are_resolved_by_dns(target: str, expected: str) -> None:
    """A plain host is resolved by DNS, so that all its addresses are used; other schemes remain."""
    assert address(ClientOptions(target=target)) == expected


def test_the_channel_has_round_robin_retries_and_keepalive() -> None:
    """Channels use all addresses, retry transient errors, and ping no more often than servers accept."""
    settings = dict(arguments(ClientOptions()))
    config = json.loads(str(settings["grpc.service_config"]))
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    policy = config["methodConfig"][0]["retryPolicy"]
    assert policy["maxAttempts"] == 4
    assert policy["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"]
    assert settings["grpc.keepalive_time_ms"] == 300_000
    assert "grpc.keepalive_permit_without_calls" not in settings


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
        ("max_receive_bytes", 0),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: Any) -> None:
    """An option out of range raises ValueError, which names it; an API key is not quoted."""
    with pytest.raises(ValueError, match=name) as raised:
        ClientOptions(**{name: value})
    assert name != "api_key" or not value or value not in str(raised.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_option_given_to_the_client_names_client_options(kind: Any) -> None:
    """A TypeError names the class that was called, and ClientOptions as the place of an option."""
    with pytest.raises(TypeError) as raised:
        kind("localhost:1", timeout_s=3)
    expected = f"{kind.__name__}() got an unexpected keyword argument 'timeout_s'; pass it in the options: "
    assert str(raised.value) == f"{expected}{kind.__name__}(options=ClientOptions(timeout_s=...))"
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'colour'$"):
        kind("localhost:1", colour="red")
