"""Opens what the served model needs to make personas of answers."""

from __future__ import annotations

import logging

from vllm_palign.config import hub
from vllm_palign.directions import Directions, load_directions
from vllm_palign.directions.file import MAX_FILE_BYTES
from vllm_palign.errors import PalignStartupError
from vllm_palign.persona import model_name
from vllm_palign.shape import ModelShape

_logger = logging.getLogger("vllm.palign")


def open_directions(source: str, shape: ModelShape, model: str) -> Directions:
    """The directions at ``source``, a path or ``hf://`` URL, for a ``model`` of this ``shape``. Those of a model
    of another name warn.

    Raises PalignStartupError when they cannot be read or do not fit.
    """
    try:
        path = hub.download(source, most_bytes=MAX_FILE_BYTES) if hub.is_hub(source) else source
        directions = load_directions(path)
        shape.check_directions(directions)
    except PalignStartupError as error:
        raise PalignStartupError(f"--palign-directions {source}: {error.message}") from error
    if model_name(directions.base_model) != model_name(model):
        _logger.warning(
            "palign: %s holds the directions of %r, served is %r of the same shape; personas made of answers "
            "will steer, but perhaps not as intended",
            source,
            directions.base_model[:80],
            model,
        )
    # Made now: the first person enrolled need not wait for them.
    _ = directions.strangers
    _logger.info(
        "palign: answers become personas by the directions %.12s of %s", directions.digest, source
    )
    return directions
