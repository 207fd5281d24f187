"""What crosses a process: bodies, money, x402 objects, digests. Pure: no clock, no network, no environment."""
