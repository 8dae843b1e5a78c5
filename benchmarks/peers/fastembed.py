"""fastembed in process, on a model.onnx of this machine instead of one that it would download.

python -m benchmarks.peers.fastembed FOLDER THREADS
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

from benchmarks.drivers.driver import obey
from benchmarks.drivers.in_process import InProcess


def load(folder: Path, threads: int) -> TextEmbedding:
    """Returns the model in `folder`, with mean pooling and vectors of unit length."""
    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/model"),  # must be named, is never asked
        dim=json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"],
        model_file="model.onnx",
    )
    return TextEmbedding("local/model", specific_model_path=str(folder), threads=threads, cuda=False)


def main(folder: Path, threads: int) -> None:
    """Drives the library until the runner has no more orders."""
    model = load(folder, threads)
    asyncio.run(obey(InProcess(lambda texts: np.stack(list(model.embed(texts))))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
