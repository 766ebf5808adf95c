"""The ``palign`` command: one module a group of commands."""

from __future__ import annotations

import typer

from vllm_palign.cli.play import play
from vllm_palign.cli.tenants import tenants
from vllm_palign.cli.verify import verify

app = typer.Typer(
    name="palign",
    help="Run a palign server: its tenants, whether steering works on this machine, and a page to meet personas.",
    epilog="Example: palign tenants new-key acme --file tenants.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tenants, name="tenants")
app.command(epilog="Example: palign verify Qwen/Qwen2.5-7B-Instruct --bench")(verify)
app.command(epilog="Example: palign play --server http://127.0.0.1:8000")(play)


def main() -> None:
    app()
