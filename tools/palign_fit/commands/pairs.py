"""palign-fit pairs: preference pairs, as DPO takes them, to a persona file."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from palign_fit.commands.common import (
    Device,
    Dtype,
    DtypeOption,
    JsonOption,
    alpha_of,
    check_description,
    quiet_transformers,
    with_exit_codes,
)
from palign_fit.commands.tally import WEAK
from palign_fit.errors import InputError
from palign_fit.inputs.files import write_bytes
from palign_fit.inputs.pairs import read_pairs
from palign_fit.progress import show_progress
from vllm_palign.persona import is_persona_id


@with_exit_codes
def pairs(
    model: Annotated[str, typer.Option(help="Hugging Face name or checkpoint folder.")],
    pairs: Annotated[Path, typer.Option(help="JSONL of prompt, chosen and rejected.")],
    out: Annotated[Path, typer.Option(help="The persona file to write.")],
    heads: Annotated[int, typer.Option(help="How many heads to steer.")] = 24,
    alpha: Annotated[
        str, typer.Option(help="auto: by the perplexity of neutral text; or a number.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="For samples and held-out folds.")] = 0,
    name: Annotated[str | None, typer.Option(help="Persona name; default: the file's.")] = None,
    description: Annotated[str, typer.Option(help="Kept in the file.")] = "",
    base_model: Annotated[
        str | None,
        typer.Option(help="Model name to record; default: --model, or its folder's name."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    allow_weak: Annotated[
        bool, typer.Option("--allow-weak", help="A weak fit does not end with exit 3.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit one persona from preference pairs: towards what was chosen, away from what was rejected.

    Exit 2: the input is at fault, nothing was done.
    Exit 3: the persona is weak: held-out pairs move no more towards the
    chosen answer than chance may move them. It is written all the same.
    """
    number = alpha_of(alpha)
    check_description(description)
    called = out.stem if name is None else name
    if not is_persona_id(called):
        raise InputError(
            f"--name {called[:40]!r}: wanted text like [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}; without it "
            "the name of --out is taken"
        )
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: wanted a file in a folder that is there")
    given = read_pairs(pairs)
    for note in given.notes:
        typer.echo(f"palign-fit: {note}", err=True)
        # torch and transformers take seconds to import: only after everything cheap was checked.
        from palign_fit.methods.pairs.data import MAX_USED
    from palign_fit.methods.pairs.fitter import PairSettings, fit_pairs
    from palign_fit.model.model import open_model

    settings = PairSettings(called, description, heads=heads, alpha=number, seed=seed)
    quiet_transformers()
    opened = open_model(model, base_model=base_model, device=device.value, dtype=dtype.value)
    started = perf_counter()
    with (
        show_progress() as progress,
        progress("pairs", 3 * min(len(given.pairs), MAX_USED)) as tick,
    ):
        persona = fit_pairs(opened, given, settings, tick=tick)
    seconds = perf_counter() - started
    write_bytes(out, persona.to_bytes())
    fit = persona.fit
    held, weak = fit["held_out"], fit["weak"]
    if as_json:
        told = {"id": called, "path": str(out), "digest": persona.digest, "alpha": persona.alpha}
        print(json.dumps({**told, "seconds": round(seconds, 2), "fit": fit}))
    else:
        print(
            f"{out}: alpha {persona.alpha:g}; of {held['pairs']} held-out pairs {held['accuracy']:.0%} move "
            f"towards the chosen answer (chance 50%), by {held['change']:.2f} nats a token; chosen is "
            f"likelier in {held['prefers_chosen']:.0%} (plain {held['prefers_chosen_plain']:.0%}); perplexity "
            f"{fit['perplexity']:.1f} (plain {fit['perplexity_plain']:.1f}); {seconds:.0f} s"
        )
    for warning in fit["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    if weak:
        typer.echo(
            "palign-fit: WEAK: held-out pairs move no more than chance may move them. The persona is "
            "written, and marked weak inside"
            + ("" if allow_weak else "; to accept it as it is, add --allow-weak"),
            err=True,
        )
        if not allow_weak:
            raise typer.Exit(WEAK)
