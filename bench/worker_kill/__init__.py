"""The parts of `bench.worker_kills`."""
