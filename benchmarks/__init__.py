"""Benchmarks of the service and of other systems on the same machine; run as `python -m benchmarks`."""
