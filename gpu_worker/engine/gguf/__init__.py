"""GGUF files: what makes them of a model's folder."""
