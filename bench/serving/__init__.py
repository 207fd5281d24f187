"""`livery bench serving`: what the worker's door costs a whole model."""
