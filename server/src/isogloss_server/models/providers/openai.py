"""OpenAI's embeddings API, and that of servers which speak it too, on OpenAI's own SDK."""

from collections.abc import Sequence
from typing import Any

from isogloss.wire.enums import InputType, Truncation
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import SecretStr

from isogloss_server.models.providers.errors import UNREACHABLE, ProviderCallError, from_status, redact_key
from isogloss_server.models.providers.interface import InvalidResponseError, ProviderResponse, to_rows

NO_KEY = "none"  # the SDK wants one, and servers that need none take any


USED_UP = "insufficient_quota"  # the code that comes with status 429 where waiting does not help


class OpenAI:
    """One model of OpenAI's, or of a server that speaks its API."""

    def __init__(self, model: str, address: str, key: SecretStr | None, *, title: str = "OpenAI") -> None:
        """Takes the address that `/embeddings` is appended to."""
        self.title = title
        self._model = model
        self._key = key or SecretStr(NO_KEY)
        self._client = AsyncOpenAI(
            api_key=self._key.get_secret_value(),
            base_url=address,
            max_retries=0,
            # Texts go where they were meant to, and to no other address that an answer names.
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,  # noqa: ARG002
        truncation: Truncation,  # noqa: ARG002
        timeout_s: float,
    ) -> ProviderResponse:
        """Makes one HTTP call; see `models.remote.embedder.Provider`. The API knows neither roles nor truncation."""
        try:
            answer = await self._client.embeddings.create(
                model=self._model, input=list(texts), encoding_format="base64", timeout=timeout_s
            )
            return ProviderResponse(to_rows(_in_order(answer.data)), _billed_tokens(answer))
        except APIStatusError as error:
            raise self._fault(error) from None
        except APITimeoutError:
            raise TimeoutError from None
        except APIConnectionError as error:
            raise ProviderCallError(UNREACHABLE, self.title, type(error.__cause__ or error).__name__) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _fault(self, error: APIStatusError) -> ProviderCallError:
        body = error.body if isinstance(error.body, dict) else {}
        said = redact_key(str(body.get("message", "")), self._key)
        return from_status(
            self.title, error.status_code, error.response.headers, said=said, exhausted=error.code == USED_UP
        )


def _in_order(items: Sequence[Any]) -> Sequence[Any]:
    """Returns the vectors of an answer in the order of the texts, which `index` tells."""
    ordered = sorted(items, key=lambda item: item.index)
    if [item.index for item in ordered] != list(range(len(ordered))):
        raise InvalidResponseError("its vectors are not numbered through")
    return [item.embedding for item in ordered]


def _billed_tokens(answer: Any) -> int:
    return int(getattr(answer.usage, "total_tokens", 0) or 0)
