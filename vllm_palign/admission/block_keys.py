"""Whether vLLM tells KV blocks apart by what palign adds to their keys: proven when an engine starts.

The key goes in through a function that vLLM calls by its module's name (``plugin.wraps``). A release that no
longer calls it would share blocks between personas, and every answer would look well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_palign.effect import Effect, block_identity
from vllm_palign.errors import PalignStartupError
from vllm_palign.selection import REQUEST_KEY

_BLOCK = 16
_STARTS = (None, 20, 21)
"""First steered tokens that are tried; None: a plain request."""


class _Probe:
    """A request with nothing but sampling parameters; whatever else a release asks for is None."""

    def __init__(self, start: int | None) -> None:
        self.mm_features: list[Any] = []
        self.sampling_params = self
        self.extra_args = None if start is None else {REQUEST_KEY: _packed(start)}

    def __getattr__(self, name: str) -> None:
        return None


def prove() -> None:
    """Raises PalignStartupError unless the block before a request's first steered token has a plain block's extra
    keys, and the later ones a key that names effect and token."""
    from vllm.v1.core import block_pool, kv_cache_utils

    keys_of = kv_cache_utils.generate_block_hash_extra_keys
    try:
        if block_pool.generate_block_hash_extra_keys is not keys_of:
            raise ValueError("the block pool asks another function")
        found = {start: [_keys(keys_of, start, block) for block in range(3)] for start in _STARTS}
    except Exception as error:
        raise _drifted(str(error)) from error
    for start in _STARTS:
        wanted = [_identity(start, block) for block in range(3)]
        if found[start] != wanted:
            raise _drifted(f"blocks of a request steered from token {start} have {found[start]}")


def _keys(keys_of: Any, start: int | None, block: int) -> Sequence[Any] | None:
    keys, _ = keys_of(_Probe(start), block * _BLOCK, (block + 1) * _BLOCK, 0)
    return keys and [value for _, value in keys]


def _identity(start: int | None, block: int) -> list[str] | None:
    identity = None if start is None else block_identity(_packed(start), (block + 1) * _BLOCK)
    return None if identity is None else [identity]


def _packed(start: int) -> Any:
    none = np.zeros(0, dtype=np.int32)
    effect = Effect("probe", (), none, none, np.zeros((0, 1), dtype=np.float32))
    return effect.pack(scope="answers", start=start)


def _drifted(what: str) -> PalignStartupError:
    return PalignStartupError(
        f"this vLLM does not tell KV blocks apart by what palign adds to their keys ({what}), so personas would "
        "answer from each other's; install a supported vLLM or a newer vllm-palign"
    )
