"""The head map of a persona: which heads are steered, and how hard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from palign_fit.card import head_rows
from palign_fit.errors import InputError
from vllm_palign.persona import Persona

_GREY = "#ececec"


def save_head_map(persona: Persona, path: Path) -> Path:
    """Draw layers x heads as PNG, coloured by the norm of alpha x offset in activation units.

    Raises InputError where matplotlib is missing or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "--plot needs matplotlib, which is not installed; pip install 'vllm-palign[plot]'"
        ) from error
    if path.suffix.lower() != ".png":
        raise InputError(f"--plot {path}: wanted a name ending in .png")
    figure = _draw(Figure, persona)
    try:
        # No Software entry: the same persona gives the same picture under every release.
        figure.savefig(path, dpi=150, metadata={"Software": None})
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written: {error.strerror or error}") from error
    return path


def head_grid(persona: Persona) -> np.ndarray[Any, np.dtype[np.float64]]:
    """float64 [L, H], the norm of alpha x offset in activation units; NaN where not steered."""
    grid = np.full((persona.num_layers, persona.num_heads), np.nan)
    for layer, head, norm, _ in head_rows(persona):
        grid[layer, head] = norm
    return grid


def _draw(figure_class: Any, persona: Persona) -> Any:
    grid = head_grid(persona)
    layers, heads = grid.shape
    # A cell is 0.15 to 0.32 inch, so that 9 heads stay readable and 64 x 80 fit a page.
    cell = min(0.32, max(0.15, 9.0 / max(layers, heads)))
    figure = figure_class(
        figsize=(max(4.6, heads * cell + 1.9), max(3.2, layers * cell + 1.3)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.pcolormesh(grid, cmap="viridis_r", edgecolors="white", linewidth=0.6, vmin=0)
    axes.set_facecolor(_GREY)
    axes.set_aspect("equal")
    for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
        step = next(
            one for one in (1, 2, 4, 5, 8, 10, 16, 20, 32) if one * 16 >= count or one == 32
        )
        places = np.arange(0, count, step)
        axis.set_ticks(places + 0.5, labels=[str(place) for place in places])
        axis.set_tick_params(length=0, labelsize=8)
    axes.set_xlabel("query head")
    axes.set_ylabel("decoder layer (0 = nearest the input)")
    for spine in axes.spines.values():
        spine.set_visible(False)
    title = persona.name if len(persona.name) <= 40 else persona.name[:39] + "…"
    model = persona.base_model.rsplit("/", 1)[-1]
    model = model if len(model) <= 40 else model[:39] + "…"
    # Names come from the file: a dollar sign in one must not start mathtext.
    axes.set_title(
        f"{title}: {len(persona.layers)} of {layers * heads} heads steered\n"
        f"{model}, alpha {persona.alpha:g}",
        fontsize=10,
        parse_math=False,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.03)
    bar.set_label("|alpha × offset| (activation units)")
    bar.outline.set_visible(False)
    return figure
