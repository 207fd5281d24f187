"""The engine of a layer slice: weights, KV cache, forward pass, sampling. torch lives here; no network does."""
