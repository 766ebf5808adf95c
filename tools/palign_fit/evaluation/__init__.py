"""Measures how well a condition (a persona, a prompt) fits the person it was made from, on answers it never saw.

Letters for shapes: S subjects, N inventory items.
"""
