"""Reference for the memory that grpc.aio itself leaks: a grpc.aio server whose handlers only sleep.

It has the method names of the service and reports its heaps like instrumented_server.py.

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

from benchmarks.drivers.instrumented_server import report_heaps

MAX_SLEEP_S = 0.016  # the time of a short call of the multilingual model, so that some cancellations come during it


async def _sleep() -> None:
    await asyncio.sleep(random.uniform(0, MAX_SLEEP_S))  # noqa: S311 - not for cryptography


async def embed(_request: bytes, _context: Any) -> bytes:
    """Responds after a random delay."""
    await _sleep()
    return pb.EmbedResponse(model="sleeper").SerializeToString()


async def embed_stream(requests: Any, _context: Any) -> Any:
    """Responds to each request after a random delay."""
    async for request in requests:
        await _sleep()
        number = pb.EmbedStreamRequest.FromString(request).id
        yield pb.EmbedStreamResponse(id=number, response=pb.EmbedResponse()).SerializeToString()


async def watch(_request: bytes, _context: Any) -> Any:
    """Sends one status and keeps the stream open."""
    yield health_pb2.HealthCheckResponse(status=1).SerializeToString()
    await asyncio.Event().wait()


async def main(port_file: Path) -> None:
    """Serves until the process is terminated."""
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
    partial = port_file.with_suffix(".part")  # renamed when complete, because the runner polls for the file
    partial.write_text(str(port), encoding="ascii")
    partial.replace(port_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    threading.Thread(target=report_heaps, daemon=True).start()
    uvloop.run(main(Path(sys.argv[-1])))
