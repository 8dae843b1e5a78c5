"""A folder's encoder as ONNX, which Infinity's ONNX engine and fastembed run.

python -m benchmarks.peers.export_onnx FOLDER FILE.onnx

By torch's exporter itself: the one of the optimum that Infinity needs calls an exporter that torch no longer has.
"""

import sys

import torch
from transformers import AutoModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 17


class Encoder(torch.nn.Module):
    """The encoder with its inputs by position and the states of the last layer alone as its output."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns float32 [n, longest, d]."""
        states: torch.Tensor = self._model(**dict(zip(INPUTS, inputs, strict=False))).last_hidden_state
        return states


def main(folder: str, file: str) -> None:
    """Writes the file."""
    ids = torch.ones((2, 9), dtype=torch.int64)
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        Encoder(folder),
        (ids, ids, torch.zeros_like(ids)),
        file,
        input_names=list(INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys((*INPUTS, "last_hidden_state"), axes),
        opset_version=OPSET,
        dynamo=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
