"""The EmbeddingService: one method for each RPC, read -> pipeline -> write."""

from collections.abc import AsyncIterator
from functools import partial

from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from isogloss_server._version import __version__
from isogloss_server.clock import Clock
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.registry import Registry
from isogloss_server.engine.similarity import Rankings
from isogloss_server.rpc import codec
from isogloss_server.rpc.interceptor import CURRENT_CALL, Context
from isogloss_server.rpc.stream import EmbedStreams, StreamWindow

INLINE_RANKINGS = 256  # so many lists are written sooner than another thread could take them over


class EmbeddingService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Answers isogloss.v1; domain errors leave to the interceptor, which makes statuses of them."""

    def __init__(
        self, registry: Registry, pipeline: Pipeline, workers: Executor, clock: Clock, window: StreamWindow
    ) -> None:
        self._registry = registry
        self._pipeline = pipeline
        self._workers = workers
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self.streams = EmbedStreams(partial(self._embed, patient=True), window, clock)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Texts to one row vector each."""
        return await self._embed(request, CURRENT_CALL.get().deadline_s, patient=False)

    async def EmbedStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: Context
    ) -> None:
        """Embed, many at a time on one stream."""
        await self.streams.serve(context)

    async def _embed(self, request: pb.EmbedRequest, deadline_s: float, *, patient: bool) -> pb.EmbedResponse:
        call = CURRENT_CALL.get()
        call.texts += len(request.texts)
        call.model = self._registry.get(request.model).name
        result = await self._pipeline.embed(codec.to_embed_request(request, deadline_s, patient=patient))
        call.tokens += result.embedded.total_tokens
        return codec.to_embed_response(result)

    async def Similarity(self, request: pb.SimilarityRequest, context: Context) -> pb.SimilarityResponse:
        """Scores of queries against candidates."""
        call = CURRENT_CALL.get()
        call.texts = len(request.queries.texts.texts) + len(request.candidates.texts.texts)
        call.model = self._registry.get(request.model).name
        result = await self._pipeline.similarity(codec.to_similarity_request(request, call.deadline_s))
        call.tokens = result.total_tokens
        if isinstance(result.compared, Rankings) and len(result.compared.counts) > INLINE_RANKINGS:
            return await self._workers.run(codec.to_similarity_response, result)
        return codec.to_similarity_response(result)

    async def Health(self, request: pb.HealthRequest, context: Context) -> pb.HealthResponse:
        """How the models are."""
        models = [self._registry.get(request.model)] if request.model else self._registry.models
        uptime_s = self._clock.monotonic_s() - self._started_s
        return codec.to_health_response(self._registry, models, version=__version__, uptime_s=uptime_s)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """What the models that are loaded are, and what one request may ask of them."""
        models = self._registry.ready_models
        return pb.ListModelsResponse(models=[codec.to_model_info(model) for model in models])
