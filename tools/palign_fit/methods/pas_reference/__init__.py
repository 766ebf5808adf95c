"""The published procedure, as a baseline."""
