"""An engine starts only if vLLM tells KV blocks apart by what palign adds to their keys."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.v1.core import block_pool, kv_cache_utils

from vllm_palign import PalignStartupError
from vllm_palign.admission import block_keys
from vllm_palign.plugin import wraps

NAME = "_gen_prompt_embeds_extra_hash_keys"


@pytest.fixture(autouse=True)
def stock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's function, whatever another test of this process has put there."""
    there = getattr(kv_cache_utils, NAME)
    original = getattr(there, "palign_original", there)
    monkeypatch.setattr(kv_cache_utils, NAME, original)
    return original


def refusal() -> str:
    with pytest.raises(PalignStartupError) as refused:
        block_keys.prove()
    return refused.value.message


def test_what_we_wrap_reaches_every_block(monkeypatch: pytest.MonkeyPatch, stock: Any) -> None:
    monkeypatch.setattr(kv_cache_utils, NAME, wraps._extra_keys(stock))
    block_keys.prove()


def test_a_vllm_that_does_not_ask_us_is_refused(
    monkeypatch: pytest.MonkeyPatch, stock: Any
) -> None:
    assert "answer from each other's" in refusal()
    ask = kv_cache_utils.generate_block_hash_extra_keys
    monkeypatch.setattr(kv_cache_utils, NAME, wraps._extra_keys(stock))
    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", lambda *args: ask(*args))
    assert "the block pool asks another function" in refusal()
    never = lambda request, start, end, mm: (None, mm)  # noqa: E731
    for module in (kv_cache_utils, block_pool):
        monkeypatch.setattr(module, "generate_block_hash_extra_keys", never)
    assert "steered from token 20 have [None, None, None]" in refusal()


def test_every_block_alike_is_not_enough(monkeypatch: pytest.MonkeyPatch, stock: Any) -> None:
    """Without the plain part nothing would be shared; without the token, too much."""
    wrapped = wraps._extra_keys(stock)
    for wrong in (
        lambda request, start, end: wrapped(request, start, 1 << 20),
        lambda request, start, end: [(name, key.split(":")[0]) for name, key in wrapped(request, start, end)],
    ):  # fmt: skip
        monkeypatch.setattr(kv_cache_utils, NAME, wrong)
        assert "steered from token" in refusal()
