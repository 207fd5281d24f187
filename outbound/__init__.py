"""The only way out of the house: one guarded HTTP client, and one caller of language models on top of it."""
