"""The paid door: one payment for one start of work, settled before it (x402 v2 and v1, MPP), and refunds."""
