"""Counterparties for developers: GPU vendors that sell simulated jobs for real payments, and a facilitator."""
