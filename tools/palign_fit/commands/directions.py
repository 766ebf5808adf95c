"""palign-fit directions: what one model needs to make personas without being run again."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import (
    check_file,
    inventory_of,
    learned_items,
    open_cache,
    opened_model,
    with_exit_codes,
)
from palign_fit.inputs.files import write_bytes
from palign_fit.methods.palign.fitter import PalignFitter
from palign_fit.methods.palign.sentences import sentences_read
from palign_fit.methods.settings import Settings, check_heads
from palign_fit.model.cache import ModelCache
from palign_fit.progress import show_progress
from vllm_palign.directions import parse_directions, to_bytes


@with_exit_codes
def directions(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="The directions file to write.")],
    inventory: options.Inventory = None,
    train_items: options.TrainItems = None,
    heads: options.Heads = 24,
    seed: options.Seed = 0,
    base_model: options.BaseModel = None,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    memory: options.Memory = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    as_json: options.Json = False,
) -> None:
    """Read a model once, so that people cost a millisecond each, here or on a server.

    The file serves palign-fit run --directions, traits --directions, and
    vllm serve --palign-directions.

    Exit 2: the input is at fault, nothing was done. Exit 1: the model cannot be steered.
    """
    settings = Settings(heads=heads, seed=seed, check=False)
    items = inventory_of(inventory)
    used = learned_items(train_items, items)
    check_file("--out", out)
    started = perf_counter()
    texts = sentences_read(int(used.sum()))
    with show_progress() as progress:
        opened = opened_model(
            progress, model, device, dtype, base_model=base_model, texts=texts, memory=memory
        )
        check_heads(heads, opened)
        kept = ModelCache.of(opened, open_cache(cache, no_cache))
        fitter = PalignFitter(opened, items, used, settings, kept, progress)
    data = to_bytes(fitter.directions)
    # What a server would refuse is not written.
    made = parse_directions(data, source=str(out))
    write_bytes(out, data)
    seconds = perf_counter() - started
    if as_json:
        told = {
            "path": str(out),
            "digest": made.digest,
            "bytes": len(data),
            "model": made.base_model,
        }
        print(json.dumps(told | {"reach": made.reach, "seconds": round(seconds, 2)}))
        return
    print(
        f"{out}: {len(data) / 1e6:.1f} MB, {len(made.layers)} heads, {len(items.items)} items of "
        f"{items.name}; a whole questionnaire is expected to align at {made.expected:.2f}; "
        f"{seconds:.0f} s"
    )
