"""The asyncio client: the same names and arguments as the blocking one, to be awaited."""

import asyncio
from typing import Any, Self

import grpc

from isogloss import _arguments as given
from isogloss import _plans
from isogloss._base import BaseClient
from isogloss._channel import open_asyncio
from isogloss._failures import from_rpc_error
from isogloss._plans import Call, Plan
from isogloss._plans.run import Result
from isogloss.errors import CallCancelledError, FailedPreconditionError, IsoglossError
from isogloss.options import ClientOptions
from isogloss.results import Embeddings, HealthReport, ModelInfo, Neighbors, PairScores, Scores
from isogloss.v1.embedding_pb2_grpc import EmbeddingServiceStub


class AsyncClient(BaseClient):
    """Embeds and compares texts on an Isogloss server, from one event loop: the one that its first call runs in.

    Arguments, results and errors are those of Client, where they are described. Cancelling a call cancels it on the
    server as well, and raises asyncio.CancelledError as everywhere.

    Args:
        target: Where the server listens, such as "localhost:50051"; goes before the options' target.
        options: All else about the connection.
    """

    def __init__(self, target: str | None = None, *, options: ClientOptions | None = None) -> None:
        super().__init__(target, options)
        self._channel: grpc.aio.Channel | None = None
        self._stub: EmbeddingServiceStub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def embed(
        self,
        texts: given.GivenTexts,
        *,
        model: str = "",
        input_type: str = "similarity",
        dimensions: int = 0,
        element_type: str = "float32",
        truncation: str = "end",
        normalize: bool = True,
        priority: str = "interactive",
        allow_partial: bool = False,
        space_id: str = "",
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Returns one vector for each text, in order; as Client.embed."""
        arguments = given.embed_arguments(
            model=model,
            input_type=input_type,
            dimensions=dimensions,
            element_type=element_type,
            truncation=truncation,
            normalize=normalize,
            priority=priority,
            allow_partial=allow_partial,
            space_id=space_id,
        )
        side = given.texts("texts", texts, arguments.input_type)
        return await self._run(_plans.embed(self._known, arguments, side), timeout_s)

    async def similarity(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide | None = None,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str = "end",
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Scores:
        """Returns the score of every query against every candidate, float32 [q, c]; as Client.similarity."""
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.sides(queries, candidates, query_type, candidate_type)
        return await self._run(_plans.similarity(self._known, arguments, sides), timeout_s)

    async def pairwise(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str = "end",
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> PairScores:
        """Returns the score of query i against candidate i, float32 [n]; as Client.pairwise."""
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.sides(queries, candidates, query_type, candidate_type)
        return await self._run(_plans.pairwise(self._known, arguments, sides), timeout_s)

    async def nearest(
        self,
        query: str,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str = "end",
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Neighbors:
        """Returns the candidates nearest to one query, best first, ties by lower row; as Client.nearest."""
        [neighbors] = await self.nearest_many(
            [given.string("query", query)],
            candidates,
            k=k,
            min_score=min_score,
            model=model,
            metric=metric,
            dimensions=dimensions,
            query_type=query_type,
            candidate_type=candidate_type,
            truncation=truncation,
            priority=priority,
            timeout_s=timeout_s,
        )
        return neighbors

    async def nearest_many(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str = "end",
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> list[Neighbors]:
        """Returns for each query the candidates nearest to it, best first; as Client.nearest_many."""
        shape = given.nearest_shape(k, min_score)
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.sides(queries, candidates, query_type, candidate_type)
        return await self._run(_plans.nearest(self._known, arguments, shape, sides), timeout_s)

    async def health(self, model: str = "", *, timeout_s: float | None = None) -> HealthReport:
        """Returns whether the server, or `model` alone, can serve now, and how loaded it is."""
        return await self._run(_plans.health(given.string("model", model)), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Returns the models that the server offers, the default first."""
        return await self._run(_plans.models(), timeout_s)

    async def close(self) -> None:
        """Ends the connection, and with CallCancelledError the calls that still run. Closing twice is fine."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _run(self, plan: Plan[Result], timeout_s: float | None) -> Result:
        run = self._start(plan, timeout_s)
        while not run.done:
            try:
                response = await self._send(run.call, run.left_s())
            except IsoglossError as error:
                run.fail(error)
            else:
                run.answer(response)
        return run.result

    async def _send(self, call: Call, timeout_s: float) -> Any:
        method = getattr(self._connected(), call.method)
        try:
            return await method(call.request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            # Without grpc in the traceback; a debugger still finds it as __context__.
            raise from_rpc_error(error) from None
        except grpc.aio.UsageError:  # grpc's for a closed channel
            self._require_open()
            raise
        except asyncio.CancelledError:
            if self._closed and not _cancelled():
                raise CallCancelledError("the client was closed while the call ran", reason="CLIENT_CLOSED") from None
            raise

    def _connected(self) -> EmbeddingServiceStub:
        loop = asyncio.get_running_loop()
        if self._stub is None:
            # Not in the constructor, which may run before there is a loop: a channel belongs to one.
            self._loop = loop
            self._channel = open_asyncio(self._options)
            self._stub = EmbeddingServiceStub(self._channel)
        if loop is not self._loop:
            message = "this client belongs to the event loop of its first call; make one for each loop"
            raise FailedPreconditionError(message, reason="OTHER_EVENT_LOOP")
        return self._stub


def _cancelled() -> bool:
    """Says whether somebody cancelled this task; grpc raises the same exception when the channel is closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
