"""The knobs of what stands around the models: queue, cache, providers, metrics."""

from pathlib import Path

from pydantic import FiniteFloat, SecretStr
from pydantic_settings import BaseSettings

from isogloss_server.settings.knob import knob


class ServiceKnobs(BaseSettings):
    """What can be told of all that stands around the models; a part of Settings."""

    max_queue_tokens: int = knob(
        262_144,
        "work of one model that may wait, in tokens; BULK may take half of it; beyond, calls are refused, and streams "
        "are not read further",
        section="queue",
        unit="TOKENS",
        ge=1,
        le=10**9,
    )
    max_queue_bytes: int = knob(
        128 * 1024**2,
        "memory for texts and vectors of one model's waiting work; beyond, calls and streams are refused",
        section="queue",
        unit="BYTES",
        ge=1024,
        le=2**40,
    )
    watchdog_s: FiniteFloat = knob(
        30.0,
        "a batch that runs longer makes the model NOT_SERVING until one succeeds again, and fails what waits",
        section="queue",
        unit="SECONDS",
        ge=0.01,
        le=3600,
    )
    cache_bytes: int = knob(
        64 * 1024**2,
        "memory for vectors of texts that may come again, of all models together; 0 keeps none",
        section="cache",
        unit="BYTES",
        ge=0,
        le=2**40,
    )
    cache_static: bool = knob(
        True, "static models, such as the bundled one, use the cache too", section="cache", unit=""
    )
    cache_redis_url: SecretStr | None = knob(
        None,
        "Redis to share vectors with other servers: redis://[:PASSWORD@]HOST[:PORT][/DB] or rediss://",
        section="cache",
        unit="URL",
    )
    cache_redis_prefix: str = knob("isogloss:", "what its keys begin with", section="cache", unit="PREFIX")
    cache_redis_ttl_s: int = knob(
        7 * 86_400, "how long it keeps a vector", section="cache", unit="SECONDS", ge=1, le=10 * 365 * 86_400
    )
    cache_redis_timeout_ms: FiniteFloat = knob(
        20.0,
        "how long it may take to answer before a call goes on without it",
        section="cache",
        unit="MILLISECONDS",
        ge=0.1,
        le=60_000,
    )
    cohere_key_file: Path | None = knob(
        None, "file that holds Cohere's key; else CO_API_KEY", section="providers", unit="FILE"
    )
    openai_key_file: Path | None = knob(
        None, "file that holds OpenAI's key; else OPENAI_API_KEY", section="providers", unit="FILE"
    )
    provider_calls: int = knob(
        8, "calls to a provider in flight, of each model", section="providers", unit="CALLS", ge=1, le=1000
    )
    provider_texts_per_call: int = knob(
        0,
        "texts of one call to a provider; 0 = as many as it takes",
        section="providers",
        unit="TEXTS",
        ge=0,
        le=10_000,
    )
    provider_texts_per_minute: int = knob(
        0,
        "texts that a provider is sent a minute, of each model; 0 = the provider's known limit, if any",
        section="providers",
        unit="TEXTS",
        ge=0,
        le=10**9,
    )
    provider_timeout_s: FiniteFloat = knob(
        60.0,
        "how long a provider may take, retries included, where the caller sets no deadline, and at start",
        section="providers",
        unit="SECONDS",
        ge=0.1,
        le=3600,
    )
    metrics_port: int | None = knob(
        None, "port for Prometheus at /metrics; 0 takes a free one", section="metrics", unit="PORT", ge=0, le=65_535
    )
