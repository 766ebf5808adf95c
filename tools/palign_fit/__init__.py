"""palign-fit turns a person's answers into a persona file, and measures and shows persona files.

Letters for shapes, everywhere: N statements, T tokens, L decoder layers, H query heads, D head_dim,
K steered heads. Importing this package loads neither torch nor transformers.
"""
