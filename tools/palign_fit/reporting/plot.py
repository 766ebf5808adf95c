"""The head map of a persona: which heads are steered, and how hard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.reporting.card import head_rows
from vllm_palign.persona import Persona

_GREY = "#ececec"
_MOST_CELLS = 50_000


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
    if persona.num_layers * persona.num_heads > _MOST_CELLS:
        raise InputError(
            f"--plot: {persona.num_layers} layers x {persona.num_heads} heads is more than the "
            f"{_MOST_CELLS} cells that can be drawn"
        )
    figure = _draw(Figure, persona)
    try:
        # No Software entry: the same persona gives the same picture under every release.
        figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
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
    # A cell is 0.16 to 0.34 inch, so that 9 heads stay readable and 80 layers fit a page.
    cell = min(0.34, max(0.16, 11.0 / max(layers, heads)))
    figure = figure_class(figsize=(layers * cell + 1.6, max(heads * cell, 1.4) + 1.2))
    axes = figure.add_subplot()
    image = axes.pcolormesh(grid.T, cmap="viridis_r", edgecolors="white", linewidth=0.6, vmin=0)
    axes.set_facecolor(_GREY)
    axes.set_aspect("equal")
    for axis, count in ((axes.xaxis, layers), (axes.yaxis, heads)):
        step = next(one for one in (1, 2, 4, 8, 16, 32) if one * 20 >= count or one == 32)
        places = np.arange(0, count, step)
        axis.set_ticks(places + 0.5, labels=[str(place) for place in places])
        axis.set_tick_params(length=0, labelsize=8)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("query head")
    for spine in axes.spines.values():
        spine.set_visible(False)
    title = persona.name if len(persona.name) <= 40 else persona.name[:39] + "…"
    model = persona.base_model.rsplit("/", 1)[-1]
    model = model if len(model) <= 40 else model[:39] + "…"
    # Names come from the file: a dollar sign in one must not start mathtext.
    axes.set_title(
        f"{title} on {model}\n"
        f"{len(persona.layers)} of {layers * heads} heads steered, alpha {persona.alpha:g}",
        fontsize=10,
        loc="left",
        parse_math=False,
    )
    bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, max(0.012, 0.35 / layers), 1.0)))
    bar.set_label("|alpha × offset|\n(activation units)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure
