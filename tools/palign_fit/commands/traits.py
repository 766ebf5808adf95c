"""palign-fit traits: trait values to a persona file."""

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
    check_description,
    quiet_transformers,
    with_exit_codes,
)
from palign_fit.commands.tally import WEAK
from palign_fit.errors import InputError
from palign_fit.inputs.files import write_bytes
from palign_fit.inputs.sliders import parse_sliders
from palign_fit.methods.palign.sentences import shipped
from palign_fit.methods.settings import Settings
from palign_fit.model.cache import Cache, default_folder
from palign_fit.progress import show_progress
from vllm_palign.persona import is_persona_id


@with_exit_codes
def traits(
    values: Annotated[
        list[str],
        typer.Argument(help="TRAIT=VALUE in standard deviations, -3 to 3; names or O C E A N."),
    ],
    model: Annotated[str, typer.Option(help="Hugging Face name or checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="The persona file to write.")],
    heads: Annotated[int, typer.Option(help="How many heads to steer.")] = 24,
    name: Annotated[str | None, typer.Option(help="Persona name; default: the file's.")] = None,
    description: Annotated[str, typer.Option(help="Kept in the file.")] = "",
    base_model: Annotated[
        str | None,
        typer.Option(help="Model name to record; default: --model, or its folder's name."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keeps what no value changes; default: ~/.cache/palign-fit."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Compute everything anew.")] = False,
    allow_weak: Annotated[
        bool, typer.Option("--allow-weak", help="A weak persona does not end with exit 3.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make one persona from Big Five values, without answers.

    Exit 2: the input is at fault, nothing was done.
    Exit 3: the persona is weak: held-out statements follow the values no
    more than chance may. It is written all the same.
    """
    sliders = parse_sliders(values)
    check_description(description)
    called = out.stem if name is None else name
    if not is_persona_id(called):
        raise InputError(
            f"--name {called[:40]!r}: wanted text like [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}; without it "
            "the name of --out is taken"
        )
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: wanted a file in a folder that is there")
    Settings(heads=heads)
    # torch and transformers take seconds to import: only after everything cheap was checked.
    from palign_fit.methods.traits import TraitFitter
    from palign_fit.model import checkpoint
    from palign_fit.model.model import open_model

    quiet_transformers()
    kept = Cache(None if no_cache else cache or default_folder())
    started = perf_counter()
    with show_progress() as progress, progress(f"opening {model}", None):
        opened = open_model(
            model,
            base_model=base_model,
            device=device.value,
            dtype=dtype.value,
            texts=sum(map(len, shipped())),
        )
        content = checkpoint.digest(opened, kept.folder)
    with show_progress() as progress:
        fitter = TraitFitter(opened, heads, checkpoint=content, cache=kept, progress=progress)
        persona = fitter.fit(called, sliders, description)
    seconds = perf_counter() - started
    write_bytes(out, persona.to_bytes())
    fit = persona.fit
    if as_json:
        told = {"id": called, "path": str(out), "digest": persona.digest, "alpha": persona.alpha}
        print(json.dumps({**told, "seconds": round(seconds, 2), "fit": fit}))
    else:
        effects = ", ".join(f"{trait} {value:+.3f}" for trait, value in fit["effects"].items())
        print(
            f"{out}: alpha {persona.alpha:g}; held-out statements move by {effects} nats a token, "
            f"alignment {fit['alignment']:.2f}; perplexity {fit['perplexity']:.1f} (plain "
            f"{fit['perplexity_plain']:.1f}); {seconds:.0f} s"
        )
    for warning in fit["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    if fit["weak"]:
        typer.echo(
            "palign-fit: WEAK: held-out statements follow the values no more than chance may. The "
            "persona is written, and marked weak inside"
            + ("" if allow_weak else "; to accept it as it is, add --allow-weak"),
            err=True,
        )
        if not allow_weak:
            raise typer.Exit(WEAK)
