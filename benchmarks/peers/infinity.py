"""Infinity's command line, with ONNX Runtime limited to one thread.

    python -m benchmarks.peers.infinity ARGUMENTS_OF_INFINITY

Infinity passes no session options. ONNX Runtime then starts one thread for each core of the machine and binds each
thread to its core, which overrides the affinity of the process. A session with one thread uses the calling thread and
keeps the affinity.
"""

import sys
from typing import Any

import onnxruntime
from infinity_emb.cli import cli


class OneThreadSession(onnxruntime.InferenceSession):  # type: ignore[misc,unused-ignore]
    """A session with one thread by default."""

    def __init__(self, path_or_bytes: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        if sess_options is None:
            sess_options = onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = sess_options.inter_op_num_threads = 1
        super().__init__(path_or_bytes, sess_options, *args, **kwargs)


if __name__ == "__main__":
    onnxruntime.InferenceSession = OneThreadSession
    sys.exit(cli())
