"""What computes models: llama.cpp in a child, an Ollama, an OpenAI server; and the thread of a slice."""
