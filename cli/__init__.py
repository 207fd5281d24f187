"""The terminal door: one command, `livery`. Each module is one branch of its tree."""
