"""Directions: all that one model needs to make a persona from answers or trait values without being run again.

``palign-fit directions`` writes the file, ``palign-fit run --directions`` and a server's enrolment read it.
Needs numpy and safetensors only.
"""

from vllm_palign.directions.directions import Directions
from vllm_palign.directions.file import is_directions, load_directions, parse_directions, to_bytes

__all__ = ["Directions", "is_directions", "load_directions", "parse_directions", "to_bytes"]
