"""The only way out of the house: one guarded HTTP client."""
