"""Copies a trained model into the server as the bundled model and writes its card, isogloss.json.

    python training/card.py TRAINED BUNDLED

The card has the facts of bundled.toml, the digests of the files, and reference vectors for a few texts. The reference
vectors are computed by sentence-transformers (the environment of constraints/sentence-transformers.txt); the server
compares its own vectors with them at startup.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import tomllib

from sentence_transformers import SentenceTransformer

FACTS = pathlib.Path(__file__).with_name("bundled.toml")
SHIPPED = ("config_sentence_transformers.json", "model.safetensors", "modules.json", "tokenizer.json")
DIGESTED = ("model.safetensors", "tokenizer.json")
PROBES = ("Good morning, how are you?", "¿Dónde está la estación de tren?", "今日は天気がいいですね。", "ما اسمك؟")


def main() -> None:
    """Copies the model and writes the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=pathlib.Path, help="a folder in the sentence-transformers layout")
    parser.add_argument("bundled", type=pathlib.Path, help="the bundled model; if TRAINED, writes only the card")
    args = parser.parse_args()
    if args.trained.resolve() != args.bundled.resolve():
        for name in SHIPPED:
            shutil.copyfile(args.trained / name, args.bundled / name)
    model = SentenceTransformer(str(args.bundled), device="cpu", local_files_only=True).float()
    vectors = model.encode(list(PROBES), normalize_embeddings=False)
    card = {
        **tomllib.loads(FACTS.read_text(encoding="utf-8")),
        "files": {name: hashlib.sha256((args.bundled / name).read_bytes()).hexdigest() for name in DIGESTED},
        "probes": [
            {"text": text, "vector": [round(float(number), 8) for number in vector]}
            for text, vector in zip(PROBES, vectors, strict=True)
        ],
    }
    (args.bundled / "isogloss.json").write_text(json.dumps(card, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
