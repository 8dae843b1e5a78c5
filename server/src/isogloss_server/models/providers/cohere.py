"""Cohere's embed API, version 2, on Cohere's own SDK."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from cohere import AsyncClientV2
from cohere.core.api_error import ApiError
from cohere.v2.client import OMIT
from isogloss.wire.enums import InputType, Truncation
from pydantic import SecretStr

from isogloss_server.models.providers.errors import UNREACHABLE, ProviderCallError, from_status, redact_key
from isogloss_server.models.providers.interface import ProviderResponse, to_rows

# https://docs.cohere.com/reference/embed; similarity has no input type of its own, so both sides are documents.
INPUT_TYPES: Mapping[InputType, str] = {
    InputType.QUERY: "search_query",
    InputType.DOCUMENT: "search_document",
    InputType.SIMILARITY: "search_document",
    InputType.CLASSIFICATION: "classification",
    InputType.CLUSTERING: "clustering",
}


TRUNCATE: Mapping[Truncation, str] = {Truncation.END: "END", Truncation.START: "START", Truncation.ERROR: "NONE"}


class Cohere:
    """One model of Cohere's."""

    def __init__(
        self,
        model: str,
        address: str,
        key: SecretStr | None,
        *,
        dimensions: int | None = None,
        title: str = "Cohere",
    ) -> None:
        """Takes the API's address without the version, and the width to ask for where the model has several."""
        self.title = title
        self._model = model
        self._key = key or SecretStr("")
        self._dimensions = OMIT if dimensions is None else dimensions
        # Texts go where they were meant to, and to no other address that an answer names.
        self._http = httpx.AsyncClient(follow_redirects=False, limits=httpx.Limits(max_connections=None))
        self._client = AsyncClientV2(
            self._key.get_secret_value(), base_url=address, max_retries=0, httpx_client=self._http
        )

    async def embed(
        self, texts: Sequence[str], input_type: InputType, truncation: Truncation, timeout_s: float
    ) -> ProviderResponse:
        """Makes one HTTP call; see `models.remote.embedder.Provider`."""
        try:
            answer = await self._client.embed(
                model=self._model,
                texts=list(texts),
                input_type=INPUT_TYPES[input_type],
                truncate=TRUNCATE[truncation],
                # Of lists of floats the SDK makes models one by one, which holds the event loop for 0.2 s a call.
                embedding_types=["base64"],
                request_options={"timeout": timeout_s, "max_retries": 0},
                output_dimension=self._dimensions,
            )
            vectors = answer.embeddings.base64 or answer.embeddings.float_ or ()
            return ProviderResponse(to_rows(vectors), _billed_tokens(answer))
        except ApiError as error:
            raise self._fault(error) from None
        except httpx.TimeoutException:
            raise TimeoutError from None
        except httpx.HTTPError as error:
            raise ProviderCallError(UNREACHABLE, self.title, type(error).__name__) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def _fault(self, error: ApiError) -> ProviderCallError:
        body = error.body if isinstance(error.body, dict) else {}
        said = redact_key(str(body.get("message", "")), self._key)
        return from_status(self.title, error.status_code or 0, error.headers or {}, said=said)


def _billed_tokens(answer: Any) -> int:
    units = answer.meta.billed_units if answer.meta else None
    return int((units and units.input_tokens) or 0)
