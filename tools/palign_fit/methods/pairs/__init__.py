"""Personas from preference pairs."""
