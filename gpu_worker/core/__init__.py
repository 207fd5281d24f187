"""What the worker decides, pure: no clock, no files, no torch."""
