"""The GPU owner's machine at work: what it has, what it sells, the jobs that it runs and what they earn."""
