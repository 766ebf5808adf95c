"""Proves steering on a machine, on its own hardware, with any model: ``palign verify``."""
