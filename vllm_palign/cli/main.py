"""The entry point of the ``palign`` command."""

from __future__ import annotations

import typer

from vllm_palign.cli.tenants import tenants

app = typer.Typer(
    name="palign",
    help="Run a palign server for several tenants.",
    epilog="Example: palign tenants new-key acme --file tenants.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tenants, name="tenants")


@app.callback()
def _group() -> None:
    """Keeps ``palign tenants`` a group of commands while it is the only one."""


def main() -> None:
    app()
