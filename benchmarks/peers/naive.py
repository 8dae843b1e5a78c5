"""Baseline server: grpc's thread-pool server that calls SentenceTransformer.encode, with the contract of isogloss.

python -m benchmarks.peers.naive FOLDER PORT_FILE
"""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc
from sentence_transformers import SentenceTransformer

WORKERS = 10  # the value of gRPC's examples


class Service(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Encodes the texts of each call separately."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: ARG002, N802 - names of the contract
        """Returns the vectors of the texts."""
        rows = self._model.encode(list(request.texts), show_progress_bar=False)
        return pb.EmbedResponse(embeddings=pb.Matrix(data=rows.tobytes(), rows=len(rows), columns=rows.shape[1]))


def main(folder: str, port_file: Path) -> None:
    """Serves until SIGTERM; writes the port to `port_file` when ready."""
    service = Service(SentenceTransformer(folder, device="cpu"))
    sizes = [(f"grpc.max_{direction}_message_length", -1) for direction in ("receive", "send")]
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=[("grpc.so_reuseport", 0), *sizes])
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(None))
    partial = port_file.with_suffix(".part")
    partial.write_text(str(port))
    partial.replace(port_file)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
