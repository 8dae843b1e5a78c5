"""grpc.aio alone, under the service's names: handlers that sleep as long as a model may take; watched as watched.py.

python -m benchmarks.drivers.bare_grpc_server --port-file FILE
"""

import asyncio
import random
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server import metrics

from benchmarks.drivers.instrumented_server import tell

LONGEST_S = 0.016  # as long as a short call of the multilingual shape: many are given up before, some after


async def _work() -> None:
    await asyncio.sleep(random.uniform(0, LONGEST_S))  # noqa: S311 - nothing secret


async def embed(_request: bytes, _context: Any) -> bytes:
    """Answers after a while."""
    await _work()
    return pb.EmbedResponse(model="sleeper").SerializeToString()


async def embed_stream(requests: Any, _context: Any) -> Any:
    """Answers each request after a while."""
    async for request in requests:
        await _work()
        answer = pb.EmbedStreamResponse(id=pb.EmbedStreamRequest.FromString(request).id, response=pb.EmbedResponse())
        yield answer.SerializeToString()


async def watch(_request: bytes, _context: Any) -> Any:
    """Answers once, then never."""
    yield health_pb2.HealthCheckResponse(status=1).SerializeToString()
    await asyncio.Event().wait()


async def main(port_file: Path) -> None:
    """Serves until it is terminated."""
    server = grpc.aio.server()
    embedding = {
        "Embed": grpc.unary_unary_rpc_method_handler(embed),
        "EmbedStream": grpc.stream_stream_rpc_method_handler(embed_stream),
    }
    health = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("isogloss.v1.EmbeddingService", embedding),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    metrics.watch_tasks(asyncio.get_running_loop())
    part = port_file.with_suffix(".part")  # whole at once: somebody waits for the file
    part.write_text(str(port), encoding="ascii")
    part.replace(port_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    threading.Thread(target=tell, daemon=True).start()
    uvloop.run(main(Path(sys.argv[-1])))
