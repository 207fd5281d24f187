"""The machine: its hardware, its models, what it is measured at."""
