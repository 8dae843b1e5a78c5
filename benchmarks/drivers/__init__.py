"""Programs of this repository that the benchmarks run as processes: load generators, reference servers, the engine."""
