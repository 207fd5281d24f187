"""What the house knows of an EVM chain: contracts with their artifacts, typed clients, the local chain."""
