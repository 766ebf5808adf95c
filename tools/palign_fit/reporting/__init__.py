"""Draws persona files: the page of a folder (``palign-fit report``), the card and head map of one (``inspect``).

Letters for shapes: L decoder layers, H query heads, K steered heads.
"""
