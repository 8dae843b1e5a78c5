"""Infinity's own command line, with ONNX Runtime told to keep to one thread where nothing else tells it.

Infinity passes no session options, and ONNX Runtime then takes a thread for every core of the machine and binds each to
its core, whatever affinity the process was given. One thread is the caller's own, which keeps to its core.

python infinity.py ARGUMENTS_OF_INFINITY
"""

import sys
from typing import Any

import onnxruntime
from infinity_emb.cli import cli


class OneThreadSession(onnxruntime.InferenceSession):  # type: ignore[misc,unused-ignore]
    """A session of one thread unless its options say otherwise."""

    def __init__(self, path_or_bytes: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        if sess_options is None:
            sess_options = onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = sess_options.inter_op_num_threads = 1
        super().__init__(path_or_bytes, sess_options, *args, **kwargs)


if __name__ == "__main__":
    onnxruntime.InferenceSession = OneThreadSession
    sys.exit(cli())
