"""One call to a provider: made, timed, and its answer checked."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from isogloss_server.models.base import Role, Truncation
from isogloss_server.models.remote.answers import Answer, UnusableAnswerError, check
from isogloss_server.models.remote.faults import BAD_ANSWER, LONG_TIMEOUT, TIMEOUT, ProviderFault

LONG_S = 10.0  # where a call was given so long and did not end, the provider is at fault
PROBE = "isogloss"  # a text that costs a token or two


class Provider(Protocol):
    """One provider's API, on its SDK."""

    title: str  # its name, for people

    async def embed(self, texts: Sequence[str], role: Role, truncation: Truncation, timeout_s: float) -> Answer:
        """Makes one HTTP call.

        Raises:
            ProviderFault: it gave no answer.
            UnusableAnswerError: or one that could not be understood.
            TimeoutError: or none within `timeout_s`.
            Exception: whatever its SDK makes of an answer that it cannot read.
        """
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


async def call(
    provider: Provider, texts: Sequence[str], manner: tuple[Role, Truncation], *, timeout_s: float, columns: int
) -> Answer:
    """Returns what a provider answers: finite float32 [n, columns]; 0 columns: any number of them.

    Raises:
        ProviderFault: it gave no such answer in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            answer = await provider.embed(texts, *manner, timeout_s)
        check(answer.rows, len(texts), columns)
    except TimeoutError:
        raise ProviderFault(LONG_TIMEOUT if timeout_s >= LONG_S else TIMEOUT, provider.title) from None
    except UnusableAnswerError as error:
        raise ProviderFault(BAD_ANSWER, provider.title, str(error)) from error
    except ProviderFault:
        raise
    except Exception as error:  # noqa: BLE001 - whatever else an SDK raises, it is about what came back
        why = f"the SDK cannot read it ({type(error).__name__})"
        raise ProviderFault(BAD_ANSWER, provider.title, why) from None
    return answer


async def probe(provider: Provider, *, timeout_s: float, columns: int = 0) -> int:
    """Makes one small call; returns the width of its vector.

    Raises:
        ProviderFault: it gave no vector, or not one of so many columns.
    """
    manner = Role.DOCUMENT, Truncation.ERROR
    answer = await call(provider, [PROBE], manner, timeout_s=timeout_s, columns=columns)
    return int(answer.rows.shape[1])
