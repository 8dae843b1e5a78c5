"""sentence-transformers in process, as its users call it.

python -m benchmarks.peers.sentence_transformers FOLDER
"""

import asyncio
import sys

from sentence_transformers import SentenceTransformer

from benchmarks.drivers.driver import obey
from benchmarks.drivers.in_process import InProcess


def main(folder: str) -> None:
    """Drives the library until the runner has no more orders."""
    model = SentenceTransformer(folder, device="cpu")
    asyncio.run(obey(InProcess(lambda texts: model.encode(list(texts), show_progress_bar=False))))


if __name__ == "__main__":
    main(sys.argv[1])
