"""The providers' models that live tests ask, and the providers' own SDKs, which are asked beside them."""

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
    """One model at its provider."""

    source: str
    variable: str  # of the key
    truncations: tuple[str, ...]
    long_words: int  # that are more tokens than the model reads
    shorter: tuple[int, ...]  # dimensions below the model's own
    directly: Callable[[str, Sequence[str], int], Rows]  # model, documents, dimensions -> what the SDK alone gives

    @property
    def name(self) -> str:
        """As the provider calls it."""
        return self.source.partition(":")[2]

    @property
    def key(self) -> str:
        """Empty where there is none."""
        return os.environ.get(self.variable, "").strip()


def by_cohere(model: str, texts: Sequence[str], dimensions: int) -> Rows:
    """Returns what Cohere's SDK gives for documents."""
    with httpx.Client(timeout=60) as connections:  # which the SDK's own client has no way to close
        answer = cohere.ClientV2(os.environ["CO_API_KEY"], httpx_client=connections).embed(
            model=model,
            texts=list(texts),
            input_type="search_document",
            embedding_types=["float"],
            output_dimension=dimensions,
        )
    return np.asarray(answer.embeddings.float_, np.float32)


def by_openai(model: str, texts: Sequence[str], dimensions: int) -> Rows:
    """Returns what OpenAI's SDK gives."""
    with openai.OpenAI() as client:
        answer = client.embeddings.create(model=model, input=list(texts), dimensions=dimensions)
    return np.asarray([item.embedding for item in answer.data], np.float32)


OF_COHERE = {"variable": "CO_API_KEY", "truncations": ("end", "start", "error"), "directly": by_cohere}
OF_OPENAI = {"variable": "OPENAI_API_KEY", "truncations": ("error",), "directly": by_openai, "long_words": 9_000}
MODELS = (
    Live(source="cohere:embed-multilingual-v3.0", long_words=600, shorter=(), **OF_COHERE),
    Live(source="cohere:embed-multilingual-light-v3.0", long_words=600, shorter=(), **OF_COHERE),
    Live(source="cohere:embed-v4.0", long_words=0, shorter=(256, 512, 1024), **OF_COHERE),  # 128,000 tokens: too dear
    Live(source="openai:text-embedding-3-small", shorter=(256, 512, 1024), **OF_OPENAI),
    Live(source="openai:text-embedding-3-large", shorter=(256, 1024, 2048), **OF_OPENAI),
    Live(source="openai:text-embedding-ada-002", shorter=(), **OF_OPENAI),
)
