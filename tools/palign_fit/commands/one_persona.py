"""What pairs and traits share: one persona, under the name of its file, told of, weak or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from palign_fit.commands.common import check_description, check_file
from palign_fit.commands.tally import WEAK
from palign_fit.errors import InputError
from palign_fit.inputs.files import write_bytes
from vllm_palign.persona import Persona, is_persona_id


def name_for(out: Path, name: str | None, description: str) -> str:
    """The persona's name. Raises InputError for what cannot be written to ``out``."""
    check_description(description)
    called = out.stem if name is None else name
    if not is_persona_id(called):
        raise InputError(
            f"--name {called[:40]!r}: wanted text like [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}; without it "
            "the name of --out is taken"
        )
    check_file("--out", out)
    return called


def write_and_tell(
    persona: Persona,
    out: Path,
    said: str,
    weak: str,
    *,
    seconds: float,
    as_json: bool,
    fail_weak: bool,
) -> None:
    """Write ``persona`` and print what was measured: ``said``, or with ``as_json`` what it records.

    ``weak`` says of what held-out texts fail to do. Raises typer.Exit for a weak persona with ``fail_weak``.
    """
    write_bytes(out, persona.to_bytes())
    fit = persona.fit
    if as_json:
        told: dict[str, Any] = {"id": persona.name, "path": str(out), "digest": persona.digest}
        told |= {"alpha": persona.alpha, "seconds": round(seconds, 2), "fit": fit}
        print(json.dumps(told))
    else:
        print(
            f"{out}: alpha {persona.alpha:g}; {said}; perplexity {fit['perplexity']:.1f} (plain "
            f"{fit['perplexity_plain']:.1f}); {seconds:.0f} s"
        )
    for warning in fit["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    if fit["weak"]:
        typer.echo(
            f"palign-fit: WEAK: {weak}. The persona is written, and marked weak inside", err=True
        )
        if fail_weak:
            raise typer.Exit(WEAK)
