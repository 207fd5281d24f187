"""What is said to a server that speaks OpenAI's API, and what is made of what it says. Nothing here calls it."""
