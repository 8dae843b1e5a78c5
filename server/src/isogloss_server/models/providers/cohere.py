"""Cohere's embed API, version 2, called through Cohere's SDK."""

from collections.abc import Sequence
from typing import Any

import httpx
from cohere import AsyncClientV2
from cohere.core.api_error import ApiError
from cohere.v2.client import OMIT
from isogloss.wire.enums import InputType, Truncation
from pydantic import SecretStr

from isogloss_server.models.providers.catalog import COHERE
from isogloss_server.models.providers.errors import (
    UNREACHABLE,
    ProviderCallError,
    connection_failure,
    from_status,
    own_words,
)
from isogloss_server.models.providers.interface import Encoding, ProviderResponse, count_or_zero, to_rows


class Cohere:
    """One model at Cohere."""

    def __init__(
        self,
        model: str,
        address: str,
        key: SecretStr | None,
        *,
        dimensions: int | None = None,
        title: str = "Cohere",
    ) -> None:
        """Creates a client.

        Args:
            model: Cohere's name of the model.
            address: Base URL of the API, without the version.
            key: The API key.
            dimensions: The dimensions to request, if the model offers several.
            title: Name of the provider in errors.
        """
        self.title = title
        self._model = model
        self._key = key or SecretStr("")
        self.encoding: Encoding = "base64"
        self._dimensions = OMIT if dimensions is None else dimensions
        # No redirects: texts go only to the configured address.
        self._http = httpx.AsyncClient(follow_redirects=False, limits=httpx.Limits(max_connections=None))
        self._client = AsyncClientV2(
            self._key.get_secret_value(), base_url=address, max_retries=0, httpx_client=self._http
        )

    async def embed(
        self, texts: Sequence[str], input_type: InputType, truncation: Truncation, timeout_s: float
    ) -> ProviderResponse:
        """Makes one HTTP call; see `providers.interface.Provider`."""
        try:
            response = await self._client.embed(
                model=self._model,
                texts=list(texts),
                input_type=COHERE.input_types[input_type],
                truncate=COHERE.truncations[truncation],
                # Lists of floats block the event loop for 0.2 s a call: the SDK validates each number.
                embedding_types=[self.encoding],
                request_options={"timeout": timeout_s, "max_retries": 0},
                output_dimension=self._dimensions,
            )
            vectors = response.embeddings.base64 or response.embeddings.float_ or ()
            return ProviderResponse(to_rows(vectors), _billed_tokens(response))
        except ApiError as error:
            raise self._call_error(error, texts) from None
        except httpx.TimeoutException:
            raise TimeoutError from None
        except httpx.HTTPError as error:
            raise ProviderCallError(UNREACHABLE, self.title, connection_failure(error)) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def _call_error(self, error: ApiError, texts: Sequence[str]) -> ProviderCallError:
        words = own_words(error.body, self._key, texts)
        return from_status(self.title, error.status_code or 0, error.headers or {}, words=words)


def _billed_tokens(response: Any) -> int:
    units = getattr(getattr(response, "meta", None), "billed_units", None)
    return count_or_zero(getattr(units, "input_tokens", None))
