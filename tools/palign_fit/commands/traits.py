"""palign-fit traits: trait values to a persona file."""

from __future__ import annotations

from time import perf_counter
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import open_cache, opened_model, with_exit_codes
from palign_fit.commands.one_persona import name_for, write_and_tell
from palign_fit.inputs.sliders import parse_sliders
from palign_fit.methods.palign.sentences import sentences_read
from palign_fit.methods.settings import Settings
from palign_fit.methods.traits import TraitFitter
from palign_fit.model.cache import ModelCache
from palign_fit.progress import show_progress
from vllm_palign.directions import load_directions

_OF_A_MODEL = ("heads", "base_model", "device", "dtype", "memory", "cache", "no_cache", "check")
"""Options that say how a model is read: directions were made with theirs."""


@with_exit_codes
def traits(
    context: typer.Context,
    values: Annotated[
        list[str],
        typer.Argument(help="TRAIT=VALUE in standard deviations, -3 to 3; names or O C E A N."),
    ],
    out: options.PersonaFile,
    model: options.ModelOrDirections = None,
    directions: options.Directions = None,
    heads: options.Heads = 24,
    name: options.Name = None,
    description: options.Description = "",
    base_model: options.BaseModel = None,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    memory: options.Memory = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    check: Annotated[
        bool, typer.Option(help="Measure the persona by forward passes; without, estimate.")
    ] = True,
    fail_weak: options.FailWeak = False,
    as_json: options.Json = False,
) -> None:
    """Make one persona from Big Five values, without answers.

    Exit 2: the input is at fault, nothing was done.
    Exit 3: with --fail-weak, the persona is weak: held-out statements follow
    the values no more than chance may. It is written all the same.
    """
    sliders = parse_sliders(values)
    called = name_for(out, name, description)
    Settings(heads=heads)
    given = options.directions_or_model(context, model, directions, _OF_A_MODEL)
    if given is not None:
        started = perf_counter()
        persona = load_directions(given).from_traits(called, sliders, description)
    else:
        with show_progress() as progress:
            texts = sentences_read(0)
            opened = opened_model(
                progress,
                str(model),
                device,
                dtype,
                base_model=base_model,
                texts=texts,
                memory=memory,
            )
            kept = ModelCache.of(opened, open_cache(cache, no_cache))
            started = perf_counter()
            fitter = TraitFitter(opened, heads, check=check, kept=kept, progress=progress)
            persona = fitter.fit(called, sliders, description)
    fit = persona.fit
    effects = ", ".join(f"{trait} {value:+.3f}" for trait, value in fit["effects"].items())
    write_and_tell(
        persona,
        out,
        f"held-out statements move by {effects} nats a token, alignment {fit['alignment']:.2f}",
        "held-out statements follow the values no more than chance may",
        seconds=perf_counter() - started,
        as_json=as_json,
        fail_weak=fail_weak,
    )
