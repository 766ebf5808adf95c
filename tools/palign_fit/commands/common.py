"""What all commands share: exit codes, options, output."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import numpy as np
import typer

from palign_fit.commands import options
from palign_fit.errors import FitError, InputError
from palign_fit.inputs.files import write_text
from palign_fit.inputs.inventory import built_in, read_inventory
from palign_fit.model.cache import Cache, default_folder
from palign_fit.model.model import OpenedModel, open_model
from palign_fit.progress import Progress
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask
from vllm_palign.errors import PalignError

Command = TypeVar("Command", bound=Callable[..., None])


def with_exit_codes(command: Command) -> Command:
    """Bad input ends with exit 2, a failed fit with 1; the message goes to stderr."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (InputError, PalignError) as error:
            typer.echo(f"palign-fit: {error}", err=True)
            raise typer.Exit(2) from error
        except FitError as error:
            typer.echo(f"palign-fit: {error}", err=True)
            raise typer.Exit(1) from error

    return run  # type: ignore[return-value]


def opened_model(
    progress: Progress,
    source: str,
    device: options.Device,
    dtype: options.Dtype,
    *,
    base_model: str | None = None,
    texts: int = 0,
    memory: float | None = None,
) -> OpenedModel:
    """As ``open_model``, of what --model, --device and --dtype name.

    torch and transformers take seconds to import: call this only after everything cheap was checked.
    """
    if not sys.stderr.isatty():
        from transformers.utils import logging

        # Its loading bars go to stderr even when that is a file.
        logging.disable_progress_bar()
    with progress(f"opening {source}", None):
        return open_model(
            source,
            device=device.value,
            dtype=dtype.value,
            base_model=base_model,
            texts=texts,
            memory=memory,
        )


def alpha_of(text: str) -> float | None:
    """--alpha: None for auto, else a finite number. Raises InputError."""
    if text == "auto":
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"--alpha {text[:40]!r}: wanted auto or a number")
    return number


def check_description(text: str) -> None:
    """Raises InputError for what a persona file does not keep."""
    if len(text) > 1000 or not text.isprintable():
        raise InputError("--description: wanted at most 1000 printable characters")


def inventory_of(path: Path | None) -> Inventory:
    """--inventory, its doubtful texts named on stderr; without, the built-in one. Raises InputError."""
    if path is None:
        return built_in()
    inventory = read_inventory(path)
    for note in inventory.notes:
        typer.echo(f"palign-fit: {note}", err=True)
    return inventory


def learned_items(path: Path | None, inventory: Inventory) -> Mask:
    """Items that directions are made with, bool [N]: --train-items, or all. Raises InputError."""
    if path is None:
        return np.ones(len(inventory.items), bool)
    from palign_fit.evaluation.split import read_train_items

    listed = read_train_items(path, inventory)
    return np.array([item.id in listed for item in inventory.items])


def check_file(option: str, path: Path) -> None:
    """Refuse, before any work is done, a place where no file can be written. Raises InputError."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{option} {path}: wanted a file in a folder that is there")
    try:
        with TemporaryFile(dir=path.parent):
            pass
        path.is_file()  # too long a name is an error here
    except OSError as error:
        raise InputError(f"{option} {path}: nothing can be written there: {error}") from error


def open_cache(folder: Path | None, no_cache: bool) -> Cache:
    return Cache(None if no_cache else folder or default_folder())


def emit(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
