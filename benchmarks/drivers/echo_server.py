"""Reference for the cost of gRPC: a grpc.aio server that returns the same bytes for every Embed call.

python -m benchmarks.drivers.echo_server PORT_FILE RESPONSE_BYTES
"""

import asyncio
import signal
import sys
from pathlib import Path

import grpc
import uvloop


async def main(port_file: Path, response_bytes: int) -> None:
    """Serves until SIGTERM, without parsing or building messages."""
    response = bytes(response_bytes)

    async def embed(_request: bytes, _context: object) -> bytes:
        return response

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {"Embed": grpc.unary_unary_rpc_method_handler(embed)}
    generic = grpc.method_handlers_generic_handler("isogloss.v1.EmbeddingService", handlers)
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    partial = port_file.with_suffix(".part")
    partial.write_text(str(port))
    partial.replace(port_file)
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2])))
