"""One provider's model, from its name to what answers requests: key, SDK, embedder, a first call."""

import ipaddress
from urllib.parse import urlsplit

from pydantic import SecretStr

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.engine.registry import Ready, ServedModel
from isogloss_server.engine.workers import Workers
from isogloss_server.errors import ProviderSetupError
from isogloss_server.loading import admission_of, limits_of
from isogloss_server.models import providers
from isogloss_server.models.providers import Hosted
from isogloss_server.models.remote.call import Provider, probe
from isogloss_server.models.remote.embedder import RemoteEmbedder, Terms
from isogloss_server.models.remote.faults import (
    LONG_TIMEOUT,
    RATE_LIMIT,
    TIMEOUT,
    UNAVAILABLE,
    UNREACHABLE,
    ProviderFault,
)
from isogloss_server.settings import KEY_VARIABLES, Settings, provider_key

START_BACKOFF_S = 1.0
MAY_PASS = (UNAVAILABLE, UNREACHABLE, RATE_LIMIT, TIMEOUT, LONG_TIMEOUT)


async def connect(model: ServedModel, source: str, settings: Settings, loader: Workers, clock: Clock) -> Ready:
    """Returns a provider's model ready to be asked, after one small call.

    A provider that cannot be reached at the moment does not keep a known model from being served: it starts degraded,
    until a probe succeeds.

    Raises:
        ProviderSetupError: it cannot be served: no key, one that is refused, no such model, a wrong address.
    """
    hosted = providers.resolve(source)
    key = provider_key(hosted.kind, settings)
    _check_key(hosted, key)
    provider = await loader.run(_client, hosted, key)  # importing an SDK takes a second
    try:
        dimensions, fault = await _first_call(source, hosted, provider, settings, clock)
    except BaseException:
        await provider.close()
        raise
    card = hosted.card(dimensions)
    embedder = RemoteEmbedder(
        model.name, provider, card, _terms(hosted, settings), clock, report=model.reporter("provider")
    )
    if fault is not None:
        embedder.breaker.open(fault)
    return Ready(
        embedder, limits_of(settings, card), bulk_jobs=settings.provider_calls, admission=admission_of(settings)
    )


async def _first_call(
    source: str, hosted: Hosted, provider: Provider, settings: Settings, clock: Clock
) -> tuple[tuple[int, ...], ProviderFault | None]:
    """Returns the dimensions to offer, and what went wrong where that may pass; an unknown model is waited for."""
    known = hosted.known.dimensions
    until_s = clock.monotonic_s() + settings.provider_timeout_s
    while True:
        remaining_s = until_s - clock.monotonic_s()
        try:
            width = await probe(provider, timeout_s=remaining_s, columns=known[0] if known else 0)
        except ProviderFault as fault:
            if known and fault.kind in MAY_PASS:
                return known, fault
            if fault.kind not in MAY_PASS or clock.monotonic_s() + START_BACKOFF_S >= until_s:
                raise ProviderSetupError(f"model {source} cannot be served: {fault}") from fault
            await clock.sleep(START_BACKOFF_S)
        else:
            return known or (width,), None


def _terms(hosted: Hosted, settings: Settings) -> Terms:
    return Terms(
        max_texts=settings.provider_texts_per_call or hosted.max_texts,
        max_bytes=hosted.provider.max_bytes,
        calls=settings.provider_calls,
        texts_per_minute=settings.provider_texts_per_minute or hosted.texts_per_minute,
        timeout_s=settings.provider_timeout_s,
    )


def _check_key(hosted: Hosted, key: SecretStr | None) -> None:
    variable, flag = KEY_VARIABLES[hosted.kind], f"--{hosted.kind}-key-file"
    if key is None and not hosted.url:
        raise ProviderSetupError(
            f"{hosted.title} needs a key for {hosted.model}: set {variable}, or name a file by {flag}"
        )
    if key is not None and hosted.url and not _is_private(hosted.url):
        logs.warning("the key goes over the network in clear text", url=hosted.url, key=variable)


def _is_private(url: str) -> bool:
    """Returns whether nobody between can read what goes to the address."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "https" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"


# Each SDK is an extra, and imported only where it is wanted.
def _client(hosted: Hosted, key: SecretStr | None) -> Provider:
    try:
        if hosted.kind == "cohere":
            from isogloss_server.models.cohere import Cohere  # noqa: PLC0415

            several = len(hosted.known.dimensions) > 1
            return Cohere(
                hosted.model,
                hosted.address,
                key,
                dimensions=hosted.known.dimensions[0] if several else None,
                title=hosted.title,
            )
        from isogloss_server.models.openai import OpenAI  # noqa: PLC0415

        return OpenAI(hosted.model, hosted.address, key, title=hosted.title)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != hosted.kind:
            raise
        extra = f"pip install 'isogloss-server[{hosted.kind}]'"
        raise ProviderSetupError(f"{hosted.title} is reached by a package that is not installed: {extra}") from None
