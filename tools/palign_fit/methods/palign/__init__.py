"""The default method: directions by their effect on what a person would say."""
