"""EmbeddingService: one method for each RPC. Converts the message, calls the pipeline, converts the result."""

from collections.abc import AsyncIterator

from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from isogloss_server._version import __version__
from isogloss_server.clock import Clock
from isogloss_server.engine.executor import INLINE_NUMBERS, INLINE_RANKINGS, Executor
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.registry import Registry
from isogloss_server.engine.similarity import Rankings
from isogloss_server.fair_queue import CURRENT_CALLER
from isogloss_server.rpc import codec
from isogloss_server.rpc.call_memory import CallMemory
from isogloss_server.rpc.interceptor import CallContext
from isogloss_server.rpc.stream import EmbedStreams, StreamWindow

UNRESERVED_TEXTS = 16  # of an Embed; its response is so small that it is counted only when it is computed
INLINE_VECTOR_BYTES = 1 << 17  # of vectors that are decoded on the event loop


class EmbeddingService(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Serves isogloss.v1. Its methods receive a CallContext; the interceptor turns their errors into statuses."""

    def __init__(
        self,
        registry: Registry,
        pipeline: Pipeline,
        executor: Executor,
        clock: Clock,
        window: StreamWindow,
        memory: CallMemory,
    ) -> None:
        self._registry = registry
        self._pipeline = pipeline
        self._executor = executor
        self._memory = memory
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self.streams = EmbedStreams(self._embed, self._response_bytes, window, memory, clock)

    async def Embed(self, request: pb.EmbedRequest, context: CallContext) -> pb.EmbedResponse:  # type: ignore[override]
        """Embeds texts."""
        if len(request.texts) > UNRESERVED_TEXTS:
            self._memory.reserve(context, self._response_bytes(request))
        return await self._embed(request, context, context.deadline_s, from_stream=False)

    async def EmbedStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: CallContext
    ) -> None:
        """Serves many Embed requests on one stream."""
        await self.streams.serve(context)

    async def _embed(
        self, request: pb.EmbedRequest, call: CallContext, deadline_s: float, *, from_stream: bool
    ) -> pb.EmbedResponse:
        call.texts += len(request.texts)
        call.model = self._registry.get(request.model).name
        decoded = codec.to_embed_request(request, deadline_s, call.caller, from_stream=from_stream)
        result = await self._pipeline.embed(decoded)
        call.tokens += result.embedded.total_tokens
        return codec.to_embed_response(result)

    def _response_bytes(self, request: pb.EmbedRequest) -> int:
        """Returns the maximum size of the response to an Embed; 0 if the request will be refused."""
        model = self._registry.find(request.model)
        return codec.max_response_bytes(request, model.ready) if model is not None and model.is_loaded else 0

    async def Similarity(  # type: ignore[override]
        self, request: pb.SimilarityRequest, context: CallContext
    ) -> pb.SimilarityResponse:
        """Scores queries against candidates."""
        context.texts = len(request.queries.texts.texts) + len(request.candidates.texts.texts)
        model = self._registry.get(request.model)
        context.model = model.name
        CURRENT_CALLER.set(context.caller)
        run = self._executor.run_if_large
        vector_bytes = codec.check_similarity_size(request, model.ready)
        arguments = request, context.deadline_s, context.caller
        decoded = await run(vector_bytes, INLINE_VECTOR_BYTES, codec.to_similarity_request, *arguments)
        limit = model.ready.limits.max_response_bytes  # beyond it, the pipeline refuses the request
        self._memory.reserve(context, min(limit, decoded.response_bytes))
        result = await self._pipeline.similarity(decoded)
        context.tokens = result.total_tokens
        if not isinstance(result.compared, Rankings):
            return await run(result.compared.size, INLINE_NUMBERS, codec.to_similarity_response, result)
        neighbors, rankings = len(result.compared.rows), len(result.compared.counts)
        size = max(rankings, neighbors * INLINE_RANKINGS // codec.BLOCK_NEIGHBORS)
        return await run(size, INLINE_RANKINGS, codec.to_similarity_response, result)

    async def Health(self, request: pb.HealthRequest, context: CallContext) -> pb.HealthResponse:  # type: ignore[override]
        """Reports the health of the models."""
        models = [self._registry.get(request.model)] if request.model else self._registry.models
        uptime_s = self._clock.monotonic_s() - self._started_s
        return codec.to_health_response(self._registry, models, version=__version__, uptime_s=uptime_s)

    async def ListModels(  # type: ignore[override]
        self, request: pb.ListModelsRequest, context: CallContext
    ) -> pb.ListModelsResponse:
        """Describes the loaded models, and the limits of one request to each."""
        models = self._registry.ready_models
        return pb.ListModelsResponse(models=[codec.to_model_info(model) for model in models])
