"""Driver for fastembed in process, with a local model.onnx instead of a downloaded one.

python -m benchmarks.peers.fastembed FOLDER THREADS
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

from benchmarks.drivers.driver import BlockingLibraryDriver, serve_runner


def load(folder: Path, threads: int) -> TextEmbedding:
    """Returns the model in `folder`, with mean pooling and vectors of unit length."""
    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/model"),  # required by fastembed, never downloaded
        dim=json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"],
        model_file="model.onnx",
    )
    return TextEmbedding("local/model", specific_model_path=str(folder), threads=threads, cuda=False)


def main(folder: Path, threads: int) -> None:
    """Drives the library until the runner closes standard input."""
    model = load(folder, threads)
    asyncio.run(serve_runner(BlockingLibraryDriver(lambda texts: np.stack(list(model.embed(texts))))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
