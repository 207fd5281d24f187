"""The HTTP doors: the OpenAI API, generate, buying answers, GPU checks, and who is let in."""
