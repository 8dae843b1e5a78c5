"""Timings of the service beside references, taken in turn on the same machine. Run as `python -m benchmarks`."""
