"""Programs that run other systems; each runs in its system's environment as `python -m benchmarks.peers.NAME`."""
