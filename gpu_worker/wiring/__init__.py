"""Joining the parts: each port gets its edge here, and nowhere else."""
