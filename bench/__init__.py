"""Benchmarks, each printing one table and one JSON. They belong to a checkout, not to the wheel."""
