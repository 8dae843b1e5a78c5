"""The catalog of providers and their models.

Properties are from the providers' pages: https://docs.cohere.com/docs/cohere-embed, https://docs.cohere.com/docs/rate-limits,
https://docs.cohere.com/docs/deprecations, https://docs.cohere.com/reference/embed,
https://platform.openai.com/docs/guides/embeddings,
https://docs.nvidia.com/nim/nemo-retriever/text-embedding/latest/reference.html.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from isogloss.wire.enums import InputType, Truncation

from isogloss_server.errors import SettingsError
from isogloss_server.models.catalog import PROVIDER_NAMES
from isogloss_server.models.interfaces import ModelCard
from isogloss_server.models.model_folder import fingerprint


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """The properties of a provider's model."""

    dimensions: tuple[int, ...]  # offered: the model's own first; empty if unknown
    max_tokens: int  # of one text; 0 if unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderApi:
    """The properties of a provider's API; 0 stands for no limit."""

    title: str  # name for people
    package: str  # the SDK's, and the extra that installs it
    address: str  # base URL
    max_texts: int  # of one call
    max_bytes: int  # UTF-8 of one call
    texts_per_minute: int
    input_types: Mapping[InputType, str]  # the API's words; empty if it has no input types
    truncations: Mapping[Truncation, str]  # the API's words; empty if its own behaviour cannot be changed
    models: Mapping[str, ProviderModel]
    aliases: Mapping[str, str]
    retired: Sequence[str]
    successors: Sequence[str]


UNKNOWN = ProviderModel((), 0)

TRUNCATIONS: Mapping[Truncation, str] = {Truncation.END: "END", Truncation.START: "START", Truncation.ERROR: "NONE"}
SELF_HOSTED_MAX_TEXTS = 32  # of one call: the default limit of text-embeddings-inference; others allow more

COHERE = ProviderApi(
    title="Cohere",
    package="cohere",
    address="https://api.cohere.com",
    max_texts=96,
    max_bytes=0,
    texts_per_minute=2_000,
    input_types={  # without one for similarity, both sides are documents
        InputType.QUERY: "search_query",
        InputType.DOCUMENT: "search_document",
        InputType.SIMILARITY: "search_document",
        InputType.CLASSIFICATION: "classification",
        InputType.CLUSTERING: "clustering",
    },
    truncations=TRUNCATIONS,
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
    package="openai",
    address="https://api.openai.com/v1",
    max_texts=2_048,
    max_bytes=300_000,  # the API's limit is 300,000 tokens, and a token has at least one byte
    texts_per_minute=0,  # depends on the account
    input_types={},
    truncations={},
    models={
        "text-embedding-3-small": ProviderModel((1536, 1024, 768, 512, 256), 8_192),
        "text-embedding-3-large": ProviderModel((3072, 2048, 1536, 1024, 768, 512, 256), 8_192),
        "text-embedding-ada-002": ProviderModel((1536,), 8_192),
    },
    aliases={"ada-002": "text-embedding-ada-002"},
    retired=(),
    successors=(),
)

# OpenAI's API with two more fields, which NVIDIA's models require. https://huggingface.co/intfloat/e5-large-v2, the
# model that nv-embedqa-e5-v5 is made of, uses its prefix for queries wherever both sides have the same role.
NVIDIA = ProviderApi(
    title="NVIDIA",
    package="openai",
    address="https://integrate.api.nvidia.com/v1",
    max_texts=SELF_HOSTED_MAX_TEXTS,
    max_bytes=0,
    texts_per_minute=0,  # depends on the account
    input_types={kind: "passage" if kind is InputType.DOCUMENT else "query" for kind in InputType},
    truncations=TRUNCATIONS,
    models={
        "nvidia/nv-embedqa-e5-v5": ProviderModel((1024,), 512),
        "nvidia/llama-nemotron-embed-1b-v2": ProviderModel((2048, 1024, 768, 512, 384), 8_192),
    },
    aliases={},
    retired=(),
    successors=(),
)

PROVIDERS: Mapping[str, ProviderApi] = dict(zip(PROVIDER_NAMES, (COHERE, OPENAI, NVIDIA), strict=True))


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model at a provider, or at another server that offers its API."""

    kind: str  # a key of PROVIDERS
    model: str  # the provider's name of it
    url: str  # base URL of another server; empty for the provider's own

    @property
    def provider(self) -> ProviderApi:
        """The provider's API."""
        return PROVIDERS[self.kind]

    @property
    def address(self) -> str:
        """The base URL of the API."""
        return self.url or self.provider.address

    @property
    def title(self) -> str:
        """The name of the provider or server, for people."""
        return f"the server at {self.url}" if self.url else self.provider.title

    @property
    def known(self) -> ProviderModel:
        """The model's properties; UNKNOWN for models of other servers."""
        return self.provider.models.get(self.model, UNKNOWN)

    @property
    def max_texts(self) -> int:
        """The limit of texts in one call."""
        return SELF_HOSTED_MAX_TEXTS if self.kind == "openai" and self.url else self.provider.max_texts

    @property
    def texts_per_minute(self) -> int:
        """The limit of texts a minute; 0 for no limit."""
        return 0 if self.url else self.provider.texts_per_minute

    def card(self, dimensions: tuple[int, ...]) -> ModelCard:
        """Returns the description of the model, which offers these dimensions."""
        return ModelCard(
            backend=self.kind,
            space_id=fingerprint(provider=self.kind, model=self.model, address=self.address),
            dimensions=dimensions,
            max_tokens=self.known.max_tokens,
            has_roles=bool(self.provider.input_types),
            has_token_counts=False,
            truncations=tuple(self.provider.truncations) or (Truncation.ERROR,),
        )


def resolve(source: str) -> HostedModel:
    """Resolves the source of a provider's model.

    Args:
        source: `PROVIDER:MODEL` or `PROVIDER:MODEL@URL`.

    Raises:
        SettingsError: The model is unknown or retired, or the URL is invalid.
    """
    kind, _, rest = source.partition(":")
    model, _, url = rest.partition("@http")
    provider, url = PROVIDERS[kind], f"http{url}".rstrip("/") if url else ""
    model = provider.aliases.get(model, model)
    if url:
        _check_url(url, source)
    if not model:
        raise SettingsError(f"missing model in {source!r}; {_known(kind)}")
    if not url and model in provider.retired:
        successors = " or ".join(f"{kind}:{name}" for name in provider.successors)
        raise SettingsError(f"{provider.title} has retired {model}; use {successors}, and embed all texts again")
    if not url and model not in provider.models:
        raise SettingsError(_unknown_model(kind, model))
    return HostedModel(kind, model, url)


def _unknown_model(kind: str, model: str) -> str:
    name, at, address = model.partition("@")
    if at:
        example = "HOST" if "@" in address else address  # else it may hold a password
        return f"invalid URL after {f'{kind}:{name}'!r}: it must begin with http:// or https://, as in http://{example}"
    return f"unknown model {model!r} of {PROVIDERS[kind].title}; {_known(kind)}"


def _known(kind: str) -> str:
    names = ", ".join(f"{kind}:{name}" for name in PROVIDERS[kind].models)
    return f"known models: {names}; {kind}:MODEL@URL names a model at another server with this API"


def _check_url(url: str, source: str) -> None:
    try:
        parts = urlsplit(url)
        is_invalid = parts.scheme not in {"http", "https"} or not parts.hostname or bool(parts.query or parts.fragment)
        _ = parts.port  # raises ValueError if it is invalid
    except ValueError:
        is_invalid = True
    if is_invalid or parts.username or parts.password:  # not quoted: it may hold a password
        raise SettingsError(
            f"invalid URL after {source.partition('@')[0]!r}: it must be http://HOST[:PORT][/PATH] or https://..., "
            "without a user, a password or a query"
        )
