"""OpenAI's embeddings API, also of other servers that offer it, called through OpenAI's SDK."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from isogloss.wire.enums import InputType, Truncation
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import SecretStr

from isogloss_server.models.providers.errors import (
    UNREACHABLE,
    ProviderCallError,
    connection_failure,
    from_status,
    own_words,
)
from isogloss_server.models.providers.interface import (
    Encoding,
    InvalidResponseError,
    ProviderResponse,
    count_or_zero,
    to_rows,
)

NO_WORDS: Mapping[Any, str] = MappingProxyType({})
NO_KEY = "none"  # the SDK requires a key; servers without authentication ignore it
QUOTA_EXHAUSTED = "insufficient_quota"  # error code with status 429: a retry will not succeed


class OpenAI:
    """One model at OpenAI, or at a server that offers its API."""

    def __init__(
        self,
        model: str,
        address: str,
        key: SecretStr | None,
        *,
        title: str = "OpenAI",
        input_types: Mapping[InputType, str] = NO_WORDS,
        truncations: Mapping[Truncation, str] = NO_WORDS,
    ) -> None:
        """Creates a client.

        Args:
            model: The name of the model.
            address: Base URL of the API; `/embeddings` is appended.
            key: The API key, if the server requires one.
            title: Name of the provider in errors.
            input_types: Values of the field `input_type`, which OpenAI's own API does not have.
            truncations: Values of the field `truncate`, which OpenAI's own API does not have.
        """
        self.title = title
        self._input_types = input_types
        self._truncations = truncations
        self.encoding: Encoding = "base64"
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
        input_type: InputType,
        truncation: Truncation,
        timeout_s: float,
    ) -> ProviderResponse:
        """Makes one HTTP call; see `providers.interface.Provider`."""
        fields: dict[str, str] = {}
        if self._input_types:
            fields["input_type"] = self._input_types[input_type]
        if self._truncations:
            fields["truncate"] = self._truncations[truncation]
        try:
            response = await self._client.embeddings.create(
                model=self._model,
                input=list(texts),
                encoding_format=self.encoding,
                extra_body=fields or None,
                timeout=timeout_s,
            )
            return ProviderResponse(to_rows(_in_order(response.data)), _billed_tokens(response))
        except APIStatusError as error:
            raise self._call_error(error, texts) from None
        except APITimeoutError:
            raise TimeoutError from None
        except APIConnectionError as error:
            raise ProviderCallError(UNREACHABLE, self.title, connection_failure(error.__cause__ or error)) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _call_error(self, error: APIStatusError, texts: Sequence[str]) -> ProviderCallError:
        return from_status(
            self.title,
            error.status_code,
            error.response.headers,
            words=own_words(error.body, self._key, texts),
            quota_exhausted=error.code == QUOTA_EXHAUSTED,
        )


def _in_order(items: Sequence[Any]) -> Sequence[Any]:
    """Returns the vectors of a response in the order of the texts, by their `index`.

    Servers that build JSON from protobuf omit an index of 0; others omit all of them and keep the order.
    """
    indices = [getattr(item, "index", None) for item in items]
    if indices and all(index is None for index in indices):
        return [item.embedding for item in items]
    by_index = {0 if index is None else index: item for index, item in zip(indices, items, strict=True)}
    if any(type(index) is not int for index in by_index) or sorted(by_index) != list(range(len(indices))):
        raise InvalidResponseError("the vectors' indices are not 0 to n - 1")
    return [by_index[row].embedding for row in range(len(indices))]


def _billed_tokens(response: Any) -> int:
    return count_or_zero(getattr(getattr(response, "usage", None), "total_tokens", None))
