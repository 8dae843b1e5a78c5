"""Creates the gRPC channels of the clients from ClientOptions: credentials, keepalive, load balancing, proxy."""

import json

import grpc

from isogloss._version import __version__
from isogloss.options import ClientOptions, is_loopback, split_target

UNLIMITED = -1


def open_blocking(options: ClientOptions) -> grpc.Channel:
    """Returns a channel for threads. It connects with the first call."""
    if options.tls:
        return grpc.secure_channel(address(options), _credentials(options), arguments(options))
    return grpc.insecure_channel(address(options), arguments(options))


def open_asyncio(options: ClientOptions) -> grpc.aio.Channel:
    """Returns a channel for the running event loop. It connects with the first call."""
    if options.tls:
        return grpc.aio.secure_channel(address(options), _credentials(options), arguments(options))
    return grpc.aio.insecure_channel(address(options), arguments(options))


def address(options: ClientOptions) -> str:
    """Returns the target as a gRPC name, with the resolver "dns" unless it has a scheme of gRPC's."""
    return options.target if split_target(options.target)[0] else f"dns:///{options.target}"


def arguments(options: ClientOptions) -> list[tuple[str, int | str]]:
    """Returns the channel arguments for `options`."""
    return [
        ("grpc.primary_user_agent", f"isogloss-python/{__version__}"),
        # All addresses of a name in turn. No retry policy: RunningCall repeats requests, for longer than gRPC can.
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        # The limits are those in ListModels; the transport's default, 4 MiB, is lower than those.
        ("grpc.max_send_message_length", UNLIMITED),
        ("grpc.max_receive_message_length", options.max_receive_bytes),
        # Keepalive also sets TCP_USER_TIMEOUT, which detects a peer that vanished without closing the connection.
        ("grpc.keepalive_time_ms", round(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # Without it, gRPC waits for a minute, whatever the keepalive timeout.
        ("grpc.http2.ping_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # Reconnects to a restarted server within seconds; gRPC's default backoff grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", int(uses_http_proxy(options))),
    ]


def uses_http_proxy(options: ClientOptions) -> bool:
    """Returns True if gRPC may use the proxy of the environment: by default, only if the proxy cannot read texts."""
    if options.http_proxy is not None:
        return options.http_proxy
    return options.tls and not is_loopback(options.target)


def metadata(options: ClientOptions) -> tuple[tuple[str, str], ...]:
    """Returns the metadata to send with every call."""
    return (("authorization", f"Bearer {options.api_key}"),) if options.api_key else ()


def _credentials(options: ClientOptions) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=options.root_certificates)
