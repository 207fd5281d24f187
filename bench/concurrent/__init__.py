"""Many operating-system processes on one store: who held which run when, and what was paid."""
