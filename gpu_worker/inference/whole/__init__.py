"""The life of whole models: llama.cpp here, or an upstream that has them."""
