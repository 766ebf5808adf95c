"""The entry point of the ``palign`` command."""

from __future__ import annotations

from vllm_palign.cli.extras import run_command


def main() -> None:
    run_command("vllm_palign.cli.main", extra="service")


if __name__ == "__main__":
    main()
