"""vLLM's insides, checked before use: what is wrapped, what is read, which versions."""
