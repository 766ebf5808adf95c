"""Checks vLLM's insides before they are used: what is wrapped, what is read, which release."""
