"""palign-fit: questionnaire answers in, persona file out.

A fit's life, one module a step: ``inventory`` and ``answers`` read what the user gives, ``model``
opens the language model and finds its attention output projections, ``activations`` and
``likelihood`` run it, ``probes`` finds directions and scores heads, ``fit`` (the default method) and
``reference`` (the published one) put these together, ``steer`` applies a persona to a Hugging Face
model, ``card`` and ``plot`` show a persona file, ``cli`` is the command line.

Letters for shapes, everywhere: N statements, T tokens, L decoder layers, H query heads, D head_dim,
K steered heads. Importing this package loads neither torch nor transformers.
"""
