"""Writes isogloss.json into a model's folder: what the layout does not say, digests, and known vectors.

    python training/card.py FOLDER --revision 1 --license Apache-2.0 --languages en,de --dimensions 256,128,64

The known vectors come from sentence-transformers (the environment of constraints/sentence-transformers.txt), so that
a server which finds them again computes what the model's makers computed.
"""

import argparse
import hashlib
import json
import pathlib

from sentence_transformers import SentenceTransformer

DIGESTED = ("model.safetensors", "tokenizer.json")
PROBES = ("Good morning, how are you?", "¿Dónde está la estación de tren?", "今日は天気がいいですね。", "ما اسمك؟")


def numbers(text: str) -> list[int]:
    """Returns the whole numbers of a comma-separated list."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Reads the command line, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--license", required=True)
    parser.add_argument("--languages", required=True)
    parser.add_argument("--dimensions", required=True, type=numbers, help="the model's own first")
    args = parser.parse_args()
    model = SentenceTransformer(str(args.folder), device="cpu", local_files_only=True).float()
    vectors = model.encode(list(PROBES), normalize_embeddings=False)
    card = {
        "revision": args.revision,
        "license": args.license,
        "languages": args.languages.split(","),
        "dimensions": args.dimensions,
        "files": {name: hashlib.sha256((args.folder / name).read_bytes()).hexdigest() for name in DIGESTED},
        "probes": [
            {"text": text, "vector": [round(float(number), 8) for number in vector]}
            for text, vector in zip(PROBES, vectors, strict=True)
        ],
    }
    (args.folder / "isogloss.json").write_text(json.dumps(card, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
