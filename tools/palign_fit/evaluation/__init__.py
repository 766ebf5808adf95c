"""Held-out evaluation: how well a condition (a persona, a prompt) fits the person it was made from.

``split`` says which answers a persona never saw, ``conditions`` what each condition does to the
model, ``texts`` holds every wording, ``tasks`` turns measures into token likelihoods,
``token_tree`` and ``huggingface`` or ``server`` compute these, ``measures`` and ``intervals`` turn them
into figures, ``evaluate`` puts it together, ``tables`` shows it. ``judging`` is the open-ended
evaluation by another model.

Letters for shapes: S subjects, N inventory items.
"""
