"""Runs beside the model: which request arrived, rows of offsets, the hook, and its proof."""
