"""Creates the gRPC channels of the clients from ClientOptions: credentials, keepalive, load balancing, retries."""

import json

import grpc

from isogloss._version import __version__
from isogloss.options import ClientOptions

SERVICE = "isogloss.v1.EmbeddingService"
SCHEMES = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
UNLIMITED = -1
MAX_INT32 = 2**31 - 1


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
    # Only the schemes of gRPC count as schemes, because "localhost:50051" has the form of one too.
    if options.target.partition(":")[0] in SCHEMES or "://" in options.target:
        return options.target
    return f"dns:///{options.target}"


def arguments(options: ClientOptions) -> list[tuple[str, int | str]]:
    """Returns the channel arguments for `options`."""
    return [
        ("grpc.primary_user_agent", f"isogloss-python/{__version__}"),
        ("grpc.service_config", json.dumps(service_config(options))),
        ("grpc.enable_retries", 1),
        # gRPC never retries a request larger than this buffer; its default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", MAX_INT32),
        # The limits are those in ListModels; the transport's default, 4 MiB, is lower than those.
        ("grpc.max_send_message_length", UNLIMITED),
        ("grpc.max_receive_message_length", options.max_receive_bytes),
        # Keepalive also sets TCP_USER_TIMEOUT, which detects a peer that vanished without closing the connection.
        ("grpc.keepalive_time_ms", round(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # Reconnects to a restarted server within seconds; gRPC's default backoff grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]


def service_config(options: ClientOptions) -> dict[str, object]:
    """Returns gRPC's service config: round robin over all addresses, and retries for transient failures.

    The calls have no side effects, so retries are safe. gRPC also obeys the trailer grpc-retry-pushback-ms, by which a
    server sets the delay before the next attempt.
    """
    method: dict[str, object] = {"name": [{"service": SERVICE}]}
    stream = {"name": [{"service": SERVICE, "method": "EmbedStream"}]}  # embed_many has its own retries
    if options.attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": options.attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 3,
            # CANCELLED: gRPC's core ends requests with it that a stopping server has received, but not yet accepted.
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
        }
    return {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [method, stream]}


def metadata(options: ClientOptions) -> tuple[tuple[str, str], ...]:
    """Returns the metadata to send with every call."""
    return (("authorization", f"Bearer {options.api_key}"),) if options.api_key else ()


def _credentials(options: ClientOptions) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=options.root_certificates)
