"""What computes models: llama.cpp in a child, an Ollama, a server that speaks OpenAI's API; and the thread of a slice."""
