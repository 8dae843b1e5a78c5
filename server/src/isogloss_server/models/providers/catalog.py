"""The models that run at a provider: what their names stand for, and what is known of them.

Facts are from the providers' pages: https://docs.cohere.com/docs/cohere-embed, https://docs.cohere.com/docs/rate-limits,
https://docs.cohere.com/docs/deprecations, https://platform.openai.com/docs/guides/embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from isogloss.wire.enums import Truncation

from isogloss_server.errors import ProviderSetupError
from isogloss_server.models.catalog import PROVIDER_NAMES
from isogloss_server.models.interfaces import ModelCard
from isogloss_server.models.model_folder import fingerprint


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """One model of a provider's."""

    dimensions: tuple[int, ...]  # that mean something alone as leading columns, the model's own first
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderApi:
    """One provider's API."""

    title: str
    address: str
    max_texts: int  # of one call
    max_bytes: int  # of UTF-8 in one call; 0: any number
    texts_per_minute: int  # 0: any number
    has_roles: bool
    truncations: tuple[Truncation, ...]
    models: Mapping[str, ProviderModel]
    aliases: Mapping[str, str]
    retired: Sequence[str]
    successors: Sequence[str]


UNKNOWN = ProviderModel((), 0)


COHERE = ProviderApi(
    title="Cohere",
    address="https://api.cohere.com",
    max_texts=96,
    max_bytes=0,
    texts_per_minute=2_000,
    has_roles=True,
    truncations=(Truncation.END, Truncation.START, Truncation.ERROR),
    models={
        "embed-v4.0": ProviderModel((1536, 1024, 512, 256), 128_000),
        "embed-multilingual-v3.0": ProviderModel((1024,), 512),
        "embed-multilingual-light-v3.0": ProviderModel((384,), 512),
        "embed-english-v3.0": ProviderModel((1024,), 512),
        "embed-english-light-v3.0": ProviderModel((384,), 512),
    },
    aliases={},
    retired=("embed-multilingual-v2.0", "embed-english-v2.0", "embed-english-light-v2.0"),
    successors=("embed-v4.0", "embed-multilingual-v3.0", "embed-multilingual-light-v3.0"),
)


OPENAI = ProviderApi(
    title="OpenAI",
    address="https://api.openai.com/v1",
    max_texts=2_048,
    max_bytes=300_000,  # the API's limit is that many tokens, none of which is less than a byte
    texts_per_minute=0,  # it differs with the account
    has_roles=False,
    truncations=(Truncation.ERROR,),
    models={
        "text-embedding-3-small": ProviderModel((1536, 1024, 768, 512, 256), 8_192),
        "text-embedding-3-large": ProviderModel((3072, 2048, 1536, 1024, 768, 512, 256), 8_192),
        "text-embedding-ada-002": ProviderModel((1536,), 8_192),
    },
    aliases={"ada-002": "text-embedding-ada-002"},
    retired=(),
    successors=(),
)


PROVIDERS: Mapping[str, ProviderApi] = dict(zip(PROVIDER_NAMES, (COHERE, OPENAI), strict=True))


SELF_HOSTED_MAX_TEXTS = 32  # what text-embeddings-inference takes in one call by default; others take more


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model at a provider, or at a server that speaks its API."""

    kind: str  # a key of PROVIDERS
    model: str  # as the provider calls it
    url: str  # where not the provider's own

    @property
    def provider(self) -> ProviderApi:
        """Whose API it is."""
        return PROVIDERS[self.kind]

    @property
    def address(self) -> str:
        """Where the API is."""
        return self.url or self.provider.address

    @property
    def title(self) -> str:
        """Whom to name to people."""
        return f"the server at {self.url}" if self.url else self.provider.title

    @property
    def known(self) -> ProviderModel:
        """What is known of the model."""
        return self.provider.models.get(self.model, UNKNOWN)

    @property
    def max_texts(self) -> int:
        """How many texts one call may have."""
        return SELF_HOSTED_MAX_TEXTS if self.kind == "openai" and self.url else self.provider.max_texts

    @property
    def texts_per_minute(self) -> int:
        """How many texts the provider takes a minute; 0: any number."""
        return 0 if self.url else self.provider.texts_per_minute

    def card(self, dimensions: tuple[int, ...]) -> ModelCard:
        """Returns what there is to say of the model, whose vectors have so many columns."""
        return ModelCard(
            backend=self.kind,
            space_id=fingerprint(provider=self.kind, model=self.model, address=self.address),
            dimensions=dimensions,
            max_tokens=self.known.max_tokens,
            has_roles=self.provider.has_roles,
            truncations=self.provider.truncations,
        )


def resolve(source: str) -> HostedModel:
    """Returns what `PROVIDER:MODEL` or `PROVIDER:MODEL@URL` stands for.

    Raises:
        ProviderSetupError: no such model is known, it is retired, or the URL is none.
    """
    kind, _, rest = source.partition(":")
    model, _, url = rest.partition("@http")
    provider, url = PROVIDERS[kind], f"http{url}".rstrip("/") if url else ""
    model = provider.aliases.get(model, model)
    if url:
        _check_url(url, source)
    if not model:
        raise ProviderSetupError(f"{source!r} names no model; {_known(kind)}")
    if not url and model in provider.retired:
        successors = " or ".join(f"{kind}:{name}" for name in provider.successors)
        raise ProviderSetupError(f"{provider.title} has retired {model}; use {successors}, and embed anew")
    if not url and model not in provider.models:
        raise ProviderSetupError(f"{provider.title} has no model {model!r} that is known here; {_known(kind)}")
    return HostedModel(kind, model, url)


def _known(kind: str) -> str:
    names = ", ".join(f"{kind}:{name}" for name in PROVIDERS[kind].models)
    return f"known are {names}; {kind}:MODEL@URL names a server that speaks its API"


def _check_url(url: str, source: str) -> None:
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in {"http", "https"} or not parts.hostname or bool(parts.query or parts.fragment)
        _ = parts.port  # raises ValueError where it is none
    except ValueError:
        wrong = True
    if wrong or parts.username or parts.password:
        raise ProviderSetupError(
            f"{source.partition('@')[0]!r} must be followed by @http://HOST[:PORT][/PATH] or @https://..., "
            "without a user, a password or a query"
        )
