"""Coverage-guided fuzzing, in one process, of the path from the bytes of a request to those of its response.

Bytes -> message -> request -> checks -> bundled model -> response. Every error but a DomainError is a finding.
"""

import sys

import atheris

with atheris.instrument_imports(include=["isogloss_server"]):
    import asyncio
    import math
    from collections.abc import Callable
    from typing import Any

    from google.protobuf.message import DecodeError
    from isogloss.v1 import embedding_pb2 as pb
    from isogloss.wire.sizes import MAX_DETAILS_BYTES
    from isogloss_server.clock import SystemClock
    from isogloss_server.engine.executor import Executor
    from isogloss_server.engine.pipeline import Pipeline
    from isogloss_server.engine.registry import Registry
    from isogloss_server.errors import DomainError
    from isogloss_server.factory import load
    from isogloss_server.rpc import codec
    from isogloss_server.rpc.status import to_status
    from isogloss_server.settings.declarations import Settings

from tests.fuzz.libfuzzer import Counts, run
from tests.fuzz.seeds import EMBEDS, SIMILARITIES, STREAMED


class Target:
    """A pipeline without gRPC."""

    def __init__(self, counts: Counts) -> None:
        settings, clock, executor = Settings(), SystemClock(), Executor(1)
        self._counts = counts
        self._registry = Registry(["isogloss-static"])
        self._pipeline = Pipeline(self._registry, executor, clock)
        self._loop = asyncio.new_event_loop()
        ready = load("isogloss-static", "isogloss-static", settings, executor, clock)
        self._loop.run_until_complete(self._serve(ready))
        self.kinds: list[tuple[Any, Callable[[Any], Any]]] = [
            (pb.EmbedRequest, self._embed),
            (pb.SimilarityRequest, self._similarity),
            (pb.EmbedStreamRequest, lambda message: self._embed(message.request)),
        ]

    async def _serve(self, ready: Any) -> None:
        self._registry.get("").serve(ready)

    def one(self, data: bytes) -> None:
        """Processes one request; its first byte selects the type of the message."""
        self._counts.add("tried")
        if not data:
            return
        kind, respond = self.kinds[data[0] % len(self.kinds)]
        try:
            message = kind.FromString(data[1:])
        except DecodeError:
            self._counts.add("malformed")
            return
        try:
            self._loop.run_until_complete(respond(message)).SerializeToString()
            self._counts.add("answered")
        except DomainError as error:
            status = to_status(error)
            assert status.proto.ByteSize() <= MAX_DETAILS_BYTES, status.proto
            self._counts.add(error.reason)

    async def _embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        engine_request = codec.to_embed_request(request, math.inf, from_stream=False)
        return codec.to_embed_response(await self._pipeline.embed(engine_request))

    async def _similarity(self, request: pb.SimilarityRequest) -> pb.SimilarityResponse:
        engine_request = codec.to_similarity_request(request, math.inf)
        return codec.to_similarity_response(await self._pipeline.similarity(engine_request))


if __name__ == "__main__":
    target = Target(counts := Counts(sys.argv[2]))
    seeds = [
        bytes([kind]) + seed.SerializeToString()
        for kind, seeds in enumerate((EMBEDS, SIMILARITIES, STREAMED))
        for seed in seeds
    ]
    run(target.one, seeds, [kind for kind, _ in target.kinds], seconds=int(sys.argv[1]))
