"""The operator's command ``palign``: one module a group of commands."""
