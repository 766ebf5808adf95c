"""One HTML page about a folder of personas, ``palign-fit report``, and the card of one, ``palign-fit inspect``.

``sources`` reads the folder, ``record`` what each file says of its making, ``evaluated`` what
``palign-fit evaluate --json`` printed (``profile``: of one persona), ``samples`` asks the model itself.
``layers`` and ``charts`` turn figures into places on a picture, ``page`` fills the templates. Texts reach the
page through jinja2's autoescape alone; nothing is fetched, neither here nor by the page. ``card`` is text on a
terminal, ``plot`` the head map as PNG.

Letters for shapes: L decoder layers, H query heads, K steered heads.
"""
