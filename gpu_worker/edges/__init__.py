"""Where the worker meets the machine and the network."""
