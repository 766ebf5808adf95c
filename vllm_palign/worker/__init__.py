"""What runs beside the model: which request arrived, rows of offsets, the hook, its proof."""
