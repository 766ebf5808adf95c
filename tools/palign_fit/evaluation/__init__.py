"""Held-out evaluation: how well a condition (a persona, a prompt) fits the person it was made from.

``split`` says which answers a persona never saw, ``fitting`` makes personas of the others where none are given,
``conditions`` says what each condition does to the model, ``texts`` holds every wording, ``tasks`` turns
measures into token likelihoods, ``huggingface`` or ``server`` (over ``client``) compute these, ``readings`` are
what came out. ``measures`` and ``intervals`` turn them into figures, ``evaluating`` puts it together,
``tables`` shows it. ``judging`` is the open-ended evaluation by another model, the ``judge``.

Letters for shapes: S subjects, N inventory items.
"""
