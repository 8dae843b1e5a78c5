"""OpenAI's embeddings API, also of other servers that offer it, called through OpenAI's SDK."""

from collections.abc import Sequence
from typing import Any

from isogloss.wire.enums import InputType, Truncation
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import SecretStr

from isogloss_server.models.providers.errors import (
    UNREACHABLE,
    ProviderCallError,
    connection_failure,
    from_status,
    redact_key,
)
from isogloss_server.models.providers.interface import InvalidResponseError, ProviderResponse, to_rows

NO_KEY = "none"  # the SDK requires a key; servers without authentication ignore it
QUOTA_EXHAUSTED = "insufficient_quota"  # error code with status 429: a retry will not succeed


class OpenAI:
    """One model at OpenAI, or at a server that offers its API."""

    def __init__(self, model: str, address: str, key: SecretStr | None, *, title: str = "OpenAI") -> None:
        """Creates a client.

        Args:
            model: The name of the model.
            address: Base URL of the API; `/embeddings` is appended.
            key: The API key, if the server requires one.
            title: Name of the provider in errors.
        """
        self.title = title
        self._model = model
        self._key = key or SecretStr(NO_KEY)
        self._client = AsyncOpenAI(
            api_key=self._key.get_secret_value(),
            base_url=address,
            max_retries=0,
            # No redirects: texts go only to the configured address.
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,  # noqa: ARG002
        truncation: Truncation,  # noqa: ARG002
        timeout_s: float,
    ) -> ProviderResponse:
        """Makes one HTTP call; see `providers.interface.Provider`. The API has neither input types nor truncation."""
        try:
            response = await self._client.embeddings.create(
                model=self._model, input=list(texts), encoding_format="base64", timeout=timeout_s
            )
            return ProviderResponse(to_rows(_in_order(response.data)), _billed_tokens(response))
        except APIStatusError as error:
            raise self._call_error(error) from None
        except APITimeoutError:
            raise TimeoutError from None
        except APIConnectionError as error:
            raise ProviderCallError(UNREACHABLE, self.title, connection_failure(error.__cause__ or error)) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _call_error(self, error: APIStatusError) -> ProviderCallError:
        body = error.body if isinstance(error.body, dict) else {}
        return from_status(
            self.title,
            error.status_code,
            error.response.headers,
            message=redact_key(str(body.get("message", "")), self._key),
            quota_exhausted=error.code == QUOTA_EXHAUSTED,
        )


def _in_order(items: Sequence[Any]) -> Sequence[Any]:
    """Returns the vectors of a response in the order of the texts, by their `index`."""
    ordered = sorted(items, key=lambda item: item.index)
    if [item.index for item in ordered] != list(range(len(ordered))):
        raise InvalidResponseError("the vectors' indices are not 0 to n - 1")
    return [item.embedding for item in ordered]


def _billed_tokens(response: Any) -> int:
    return int(getattr(response.usage, "total_tokens", 0) or 0)
