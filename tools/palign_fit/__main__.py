"""The entry point of the ``palign-fit`` command, which is also ``python -m palign_fit``."""

from __future__ import annotations

from vllm_palign.cli.extras import run_command


def main() -> None:
    run_command("palign_fit.cli", extra="fit")


if __name__ == "__main__":
    main()
