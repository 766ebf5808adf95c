"""Reads what the operator gives: options, sources of personas, the registry's URL."""
