"""Roofline: the peak rate of the processor, and the floating-point operations of a text.

    python -m benchmarks.drivers.roofline THREADS -> {"f32": GFLOP, "bf16": GFLOP}

The program measures the peak rate with repeated products of large matrices in OpenVINO. The rate is per CPU second,
like the figures of the systems, so that other load on the machine affects both alike.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from tokenizers import Tokenizer

SIZE = 2048  # rows and columns of both factors
REPEATS = 15
PRECISIONS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}


def gflops(precision: str, threads: int) -> float:
    """Returns the median rate in 10^9 operations per CPU second; a multiply-add counts as two operations."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, SIZE, SIZE), dtype=np.float32)
    parameter = op.parameter([SIZE, SIZE], ov.Type.f32)
    product = op.matmul(parameter, op.constant(right), transpose_a=False, transpose_b=True)
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "ENABLE_CPU_PINNING": False,
    }
    request = ov.Core().compile_model(ov.Model([product], [parameter]), "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(left, shared_memory=True))
    request.infer()
    times_s = []
    for _ in range(REPEATS):
        start_s = time.process_time()
        request.infer()
        times_s.append(time.process_time() - start_s)
    return 2 * SIZE**3 / statistics.median(times_s) / 1e9


def flops_of_length(config: dict[str, Any], tokens: int) -> int:
    """Returns the operations of the matrix products for one text in an encoder of the BERT family, without padding.

    A layer multiplies each token by four hidden x hidden matrices (query, key, value, output) and two hidden x
    intermediate matrices. Attention multiplies each token by every other token twice. Embeddings, norms, softmax,
    activations and pooling are omitted, because the peak rate counts matrix products only.

    Args:
        config: The model's config.json.
        tokens: The number of tokens of the text.
    """
    hidden, intermediate, layers = _sizes(config)
    linear = 2 * tokens * (4 * hidden * hidden + 2 * hidden * intermediate)
    attention = 2 * 2 * tokens * tokens * hidden
    return layers * (linear + attention)


def _sizes(config: dict[str, Any]) -> tuple[int, int, int]:
    if config["model_type"] == "distilbert":
        return config["dim"], config["hidden_dim"], config["n_layers"]
    return config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]


def token_counts(folder: Path, texts: Iterable[str]) -> list[int]:
    """Returns the number of tokens of each text after truncation, with special tokens, for the model in `folder`."""
    limit = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def mean_flops(folder: Path, counts: list[int]) -> float:
    """Returns the mean operations of texts with these token counts."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return sum(flops_of_length(config, tokens) for tokens in counts) / len(counts)


if __name__ == "__main__":
    print(json.dumps({precision: gflops(precision, int(sys.argv[1])) for precision in PRECISIONS}))
