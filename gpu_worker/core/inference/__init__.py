"""What the layer slices decide, pure: rows, epochs, micro-batches, rings, limits. No tensor is touched here."""
