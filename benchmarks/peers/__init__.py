"""Programs that serve the peers; each runs inside its peer's environment, as `python -m benchmarks.peers.NAME`."""
