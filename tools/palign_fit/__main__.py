"""``python -m palign_fit`` is ``palign-fit``."""

from palign_fit.cli import main

main()
