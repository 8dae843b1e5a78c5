"""Exports the encoder of a model folder to ONNX, for Infinity's ONNX engine and fastembed.

    python -m benchmarks.peers.export_onnx FOLDER FILE.onnx

Uses torch.onnx directly: the version of optimum that Infinity requires calls an exporter that torch has removed.
"""

import sys

import torch
from transformers import AutoModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 17


class Encoder(torch.nn.Module):
    """The encoder with positional inputs and the last hidden state as its only output."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns float32 [n, longest, d]."""
        states: torch.Tensor = self._model(**dict(zip(INPUTS, inputs, strict=False))).last_hidden_state
        return states


def main(folder: str, file: str) -> None:
    """Writes the ONNX file."""
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
