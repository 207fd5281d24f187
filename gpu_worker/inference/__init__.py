"""Serving one model from layer slices: what a stage does with a step, and what the head stage does with all of them."""
