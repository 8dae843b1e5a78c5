"""The providers' models that live tests call, and calls of the providers' own SDKs for comparison."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cohere
import httpx
import numpy as np
import openai
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # [n, d]


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A model at its provider."""

    source: str
    variable: str  # that holds the key
    truncations: tuple[str, ...]
    long_words: int  # more tokens than the model's limit
    shorter: tuple[int, ...]  # dimensions below the model's own
    directly: Callable[[str, Sequence[str], int], Rows]  # model, documents, dimensions -> rows of the SDK

    @property
    def name(self) -> str:
        """The provider's name of the model."""
        return self.source.partition(":")[2]

    @property
    def key(self) -> str:
        """The API key; empty if it is not set."""
        return os.environ.get(self.variable, "").strip()


def by_cohere(model: str, texts: Sequence[str], dimensions: int) -> Rows:
    """Embeds documents with Cohere's SDK."""
    with httpx.Client(timeout=60) as connections:  # the SDK's own connections cannot be closed
        response = cohere.ClientV2(os.environ["CO_API_KEY"], httpx_client=connections).embed(
            model=model,
            texts=list(texts),
            input_type="search_document",
            embedding_types=["float"],
            output_dimension=dimensions,
        )
    return np.asarray(response.embeddings.float_, np.float32)


def by_openai(model: str, texts: Sequence[str], dimensions: int) -> Rows:
    """Embeds texts with OpenAI's SDK."""
    with openai.OpenAI() as client:
        response = client.embeddings.create(model=model, input=list(texts), dimensions=dimensions)
    return np.asarray([item.embedding for item in response.data], np.float32)


OF_COHERE = {"variable": "CO_API_KEY", "truncations": ("end", "start", "error"), "directly": by_cohere}
OF_OPENAI = {"variable": "OPENAI_API_KEY", "truncations": ("error",), "directly": by_openai, "long_words": 9_000}
MODELS = (
    Live(source="cohere:embed-multilingual-v3.0", long_words=600, shorter=(), **OF_COHERE),
    Live(source="cohere:embed-multilingual-light-v3.0", long_words=600, shorter=(), **OF_COHERE),
    Live(
        source="cohere:embed-v4.0", long_words=0, shorter=(256, 512, 1024), **OF_COHERE
    ),  # a text over the limit of 128,000 tokens costs too much
    Live(source="openai:text-embedding-3-small", shorter=(256, 512, 1024), **OF_OPENAI),
    Live(source="openai:text-embedding-3-large", shorter=(256, 1024, 2048), **OF_OPENAI),
    Live(source="openai:text-embedding-ada-002", shorter=(), **OF_OPENAI),
)
