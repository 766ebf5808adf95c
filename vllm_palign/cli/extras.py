"""Commands are installed with the package, what they need only with an extra."""

from __future__ import annotations

import importlib
import sys

_OURS = ("vllm_palign", "palign_fit")


def run_command(module: str, extra: str) -> None:
    """Run ``module.main``; where something that ``extra`` installs is missing, exit 1 with one line on it."""
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(_OURS):
            raise
        sys.exit(f"{error.name} is not installed; pip install 'vllm-palign[{extra}]'")
    main()
