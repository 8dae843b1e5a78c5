"""ClientOptions -> channels of grpc. The blocking and the asyncio client differ in the last step alone."""

import json

import grpc

from isogloss._version import __version__
from isogloss.options import ClientOptions

SERVICE = "isogloss.v1.EmbeddingService"
SCHEMES = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p"})
UNLIMITED = -1
LARGEST = 2**31 - 1


def open_blocking(options: ClientOptions) -> grpc.Channel:
    """Returns a channel for threads. Nothing is sent until the first call."""
    if options.tls:
        return grpc.secure_channel(address(options), _credentials(options), arguments(options))
    return grpc.insecure_channel(address(options), arguments(options))


def open_asyncio(options: ClientOptions) -> grpc.aio.Channel:
    """Returns a channel for the running event loop. Nothing is sent until the first call."""
    if options.tls:
        return grpc.aio.secure_channel(address(options), _credentials(options), arguments(options))
    return grpc.aio.insecure_channel(address(options), arguments(options))


def address(options: ClientOptions) -> str:
    """Returns the target with its scheme: the resolver "dns" where it names none."""
    # "localhost:50051" looks like a scheme too, so only the schemes that gRPC has are taken for one.
    if options.target.partition(":")[0] in SCHEMES or "://" in options.target:
        return options.target
    return f"dns:///{options.target}"


def arguments(options: ClientOptions) -> list[tuple[str, int | str]]:
    """Returns the channel arguments that `options` stand for."""
    return [
        ("grpc.primary_user_agent", f"isogloss-python/{__version__}"),
        ("grpc.service_config", json.dumps(service_config(options))),
        ("grpc.enable_retries", 1),
        # A request larger than this buffer, 256 KiB unless told, is never tried again.
        ("grpc.per_rpc_retry_buffer_size", LARGEST),
        # The server's limits are in ListModels; the transport's own (4 MiB) would refuse what those admit.
        ("grpc.max_send_message_length", UNLIMITED),
        ("grpc.max_receive_message_length", options.max_receive_bytes),
        # Keepalive also sets TCP_USER_TIMEOUT, which is what finds a peer that vanished without a word.
        ("grpc.keepalive_time_ms", round(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # A server that was restarted is found again within seconds; gRPC's own patience grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]


def service_config(options: ClientOptions) -> dict[str, object]:
    """Returns gRPC's service config: every address in turn, and tries again where that may help.

    The calls have no side effects, so trying again is always safe. A server that knows better how long to wait says so
    in the trailer grpc-retry-pushback-ms, which gRPC obeys by itself.
    """
    method: dict[str, object] = {"name": [{"service": SERVICE}]}
    stream = {"name": [{"service": SERVICE, "method": "EmbedStream"}]}  # tried again by embed_many, which knows more
    if options.attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": options.attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 3,
            # CANCELLED: so gRPC's core ends what has arrived, and is in nobody's hands yet, when a server stops.
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
        }
    return {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [method, stream]}


def metadata(options: ClientOptions) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of every call."""
    return (("authorization", f"Bearer {options.api_key}"),) if options.api_key else ()


def _credentials(options: ClientOptions) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=options.root_certificates)
