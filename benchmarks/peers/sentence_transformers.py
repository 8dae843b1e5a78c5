"""Driver for sentence-transformers in process, with its default settings.

python -m benchmarks.peers.sentence_transformers FOLDER
"""

import asyncio
import sys

from sentence_transformers import SentenceTransformer

from benchmarks.drivers.driver import BlockingLibraryDriver, serve_runner


def main(folder: str) -> None:
    """Drives the library until the runner closes standard input."""
    model = SentenceTransformer(folder, device="cpu")
    driver = BlockingLibraryDriver(lambda texts: model.encode(list(texts), show_progress_bar=False))
    asyncio.run(serve_runner(driver))


if __name__ == "__main__":
    main(sys.argv[1])
