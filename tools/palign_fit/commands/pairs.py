"""palign-fit pairs: preference pairs, as DPO takes them, to a persona file."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import alpha_of, opened_model, with_exit_codes
from palign_fit.commands.one_persona import name_for, write_and_tell
from palign_fit.inputs.pairs import read_pairs
from palign_fit.progress import show_progress


@with_exit_codes
def pairs(
    model: options.Model,
    pairs: Annotated[
        Path, typer.Option(help="Prompt, chosen and rejected: JSONL, JSON, Parquet or Arrow.")
    ],
    out: options.PersonaFile,
    heads: options.Heads = 24,
    alpha: Annotated[
        str,
        typer.Option(
            help="auto: as far as chats stay what they were; or a number above 0, at most 100."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="For samples and held-out folds.")] = 0,
    name: options.Name = None,
    description: options.Description = "",
    base_model: options.BaseModel = None,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    memory: options.Memory = None,
    fail_weak: options.FailWeak = False,
    as_json: options.Json = False,
) -> None:
    """Fit one persona from preference pairs: towards what was chosen, away from what was rejected.

    Exit 2: the input is at fault, nothing was done.
    Exit 3: with --fail-weak, the persona is weak: held-out pairs move no more
    towards the chosen answer than chance may move them. It is written all
    the same.
    """
    number = alpha_of(alpha)
    called = name_for(out, name, description)
    given = read_pairs(pairs)
    for note in given.notes:
        typer.echo(f"palign-fit: {note}", err=True)
    # They take seconds to import: only after everything cheap was checked.
    from palign_fit.methods.pairs.data import MAX_USED
    from palign_fit.methods.pairs.fitter import PairSettings, fit_pairs

    settings = PairSettings(called, description, heads=heads, alpha=number, seed=seed)
    with show_progress() as progress:
        texts = 2 * min(len(given.pairs), MAX_USED)
        opened = opened_model(
            progress, model, device, dtype, base_model=base_model, texts=texts, memory=memory
        )
        started = perf_counter()
        with progress("pairs", 3 * min(len(given.pairs), MAX_USED)) as tick:
            persona = fit_pairs(opened, given, settings, tick=tick)
    held = persona.fit["held_out"]
    write_and_tell(
        persona,
        out,
        f"of {held['pairs']} held-out pairs {held['accuracy']:.0%} move towards the chosen answer "
        f"(chance 50%), by {held['change']:.2f} nats a token; chosen is likelier in "
        f"{held['prefers_chosen']:.0%} (plain {held['prefers_chosen_plain']:.0%})",
        "held-out pairs move no more than chance may move them",
        seconds=perf_counter() - started,
        as_json=as_json,
        fail_weak=fail_weak,
    )
