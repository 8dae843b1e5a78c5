"""EmbeddingService: one method for each RPC. Converts the message, calls the pipeline, converts the result."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext

from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from isogloss_server._version import __version__
from isogloss_server.clock import Clock
from isogloss_server.engine.executor import INLINE_NUMBERS, INLINE_RANKINGS, Executor
from isogloss_server.engine.pipeline import Pipeline, Timings
from isogloss_server.engine.registry import Registry, ServedModel
from isogloss_server.engine.request import EmbedRequest, SimilarityRequest
from isogloss_server.engine.similarity import Rankings
from isogloss_server.fair_queue import CURRENT_CALLER
from isogloss_server.rpc import codec
from isogloss_server.rpc.call_memory import CallMemory
from isogloss_server.rpc.interceptor import Access, CallContext
from isogloss_server.rpc.stream import EmbedStreams, StreamWindow
from isogloss_server.security.quotas import UNLIMITED, Charge

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
        *,
        access: Access,
    ) -> None:
        self._registry = registry
        self._access = access
        self._pipeline = pipeline
        self._executor = executor
        self._memory = memory
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self.streams = EmbedStreams(self._embed, self._response_bytes, window, memory, clock)

    async def Embed(self, request: pb.EmbedRequest, context: CallContext) -> pb.EmbedResponse:  # type: ignore[override]
        """Embeds texts."""
        if len(request.texts) > UNRESERVED_TEXTS:
            self._memory.reserve(context, self._response_bytes(request, context))
        return await self._embed(request, context, context.deadline_s, from_stream=False)

    async def EmbedStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: CallContext
    ) -> None:
        """Serves many Embed requests on one stream."""
        await self.streams.serve(context)

    async def _embed(
        self, request: pb.EmbedRequest, call: CallContext, deadline_s: float, *, from_stream: bool
    ) -> pb.EmbedResponse:
        if from_stream and self._access.keys is not None:  # which may have changed since the stream began
            call.key = self._access.keys.current(call.key)
            call.key.check_method(call.method)
        call.texts += len(request.texts)
        model = self._registry.get(request.model, call.key.models)
        call.model = request.model = model.name
        decoded = codec.to_embed_request(request, deadline_s, call.caller, from_stream=from_stream)
        call.priority = decoded.priority.value
        async with self._charge(call, decoded, model) as charge:
            result = await self._pipeline.embed(decoded)
            if charge is not None:
                charge.tokens = result.embedded.total_tokens
        _count(call, result.embedded.total_tokens, result.timings)
        return codec.to_embed_response(result)

    def _charge(
        self, call: CallContext, request: EmbedRequest | SimilarityRequest, model: ServedModel
    ) -> AbstractAsyncContextManager[Charge | None]:
        """Returns the charge to the quota of the call's key, or None without a quota, to be entered."""
        if call.key.quota is UNLIMITED:
            return nullcontext()
        size = request.size(model.ready.embedder.card)
        return self._access.quotas.charge(call.key.name, call.key.quota, texts=size.texts, text_bytes=size.text_bytes)

    def _response_bytes(self, request: pb.EmbedRequest, call: CallContext) -> int:
        """Returns the maximum size of the response to an Embed; 0 if the request will be refused."""
        model = self._registry.find(request.model, call.key.models)
        return codec.max_response_bytes(request, model.ready) if model is not None and model.is_loaded else 0

    async def Similarity(  # type: ignore[override]
        self, request: pb.SimilarityRequest, context: CallContext
    ) -> pb.SimilarityResponse:
        """Scores queries against candidates."""
        context.texts = len(request.queries.texts.texts) + len(request.candidates.texts.texts)
        model = self._registry.get(request.model, context.key.models)
        context.model = request.model = model.name
        CURRENT_CALLER.set(context.caller)
        run = self._executor.run_if_large
        vector_bytes = codec.check_similarity_size(request, model.ready)
        arguments = request, context.deadline_s, context.caller
        decoded = await run(vector_bytes, INLINE_VECTOR_BYTES, codec.to_similarity_request, *arguments)
        limit = model.ready.limits.max_response_bytes  # beyond it, the pipeline refuses the request
        self._memory.reserve(context, min(limit, decoded.response_bytes))
        context.priority = decoded.priority.value
        async with self._charge(context, decoded, model) as charge:
            result = await self._pipeline.similarity(decoded)
            if charge is not None:
                charge.tokens = result.total_tokens
        _count(context, result.total_tokens, result.timings)
        if not isinstance(result.compared, Rankings):
            return await run(result.compared.size, INLINE_NUMBERS, codec.to_similarity_response, result)
        neighbors, rankings = len(result.compared.rows), len(result.compared.counts)
        size = max(rankings, neighbors * INLINE_RANKINGS // codec.BLOCK_NEIGHBORS)
        return await run(size, INLINE_RANKINGS, codec.to_similarity_response, result)

    async def Health(self, request: pb.HealthRequest, context: CallContext) -> pb.HealthResponse:  # type: ignore[override]
        """Reports the health of the models."""
        allowed = context.key.models
        model = self._registry.get(request.model, allowed)
        models = [model] if request.model else self._registry.visible(allowed)
        uptime_s = self._clock.monotonic_s() - self._started_s
        return codec.to_health_response(self._registry, models, version=__version__, uptime_s=uptime_s)

    async def ListModels(  # type: ignore[override]
        self, request: pb.ListModelsRequest, context: CallContext
    ) -> pb.ListModelsResponse:
        """Describes the loaded models that the caller may use, and the limits of one request to each."""
        models = self._registry.ready_models(context.key.models)
        quota = context.key.quota.texts_per_minute
        return pb.ListModelsResponse(models=[codec.to_model_info(model, quota) for model in models])


def _count(call: CallContext, tokens: int, timings: Timings) -> None:
    """Adds the result of one request to the fields of the call's log line."""
    call.tokens += tokens
    call.queue_s = (call.queue_s or 0.0) + timings.queue_s
    call.tokenization_s = (call.tokenization_s or 0.0) + timings.tokenization_s
    call.inference_s = (call.inference_s or 0.0) + timings.inference_s
