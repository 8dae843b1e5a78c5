"""The chip's own rate: one large matrix product, repeated, in each precision, by the runtime that the engine uses.

python -m benchmarks.drivers.roofline THREADS -> {"f32": GFLOP, "bf16": GFLOP}

Per second of processor time, as the systems' own work is counted: what else runs on the machine touches both alike.
"""

import json
import statistics
import sys
import time

import numpy as np
import openvino as ov
from openvino import opset13 as op

SIZE = 2048  # rows and columns of both factors
REPEATS = 15
PRECISIONS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}


def gflops(precision: str, threads: int) -> float:
    """Returns the median rate in 10^9 operations a CPU second; a product and a sum are two."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, SIZE, SIZE), dtype=np.float32)
    given = op.parameter([SIZE, SIZE], ov.Type.f32)
    product = op.matmul(given, op.constant(right), transpose_a=False, transpose_b=True)
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "ENABLE_CPU_PINNING": False,
    }
    request = ov.Core().compile_model(ov.Model([product], [given]), "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(left, shared_memory=True))
    request.infer()
    taken_s = []
    for _ in range(REPEATS):
        began_s = time.process_time()
        request.infer()
        taken_s.append(time.process_time() - began_s)
    return 2 * SIZE**3 / statistics.median(taken_s) / 1e9


if __name__ == "__main__":
    print(json.dumps({precision: gflops(precision, int(sys.argv[1])) for precision in PRECISIONS}))
