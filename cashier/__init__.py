"""The paid door: one payment for one start of work, settled before it (x402 v2, `exact`), and refunds."""
