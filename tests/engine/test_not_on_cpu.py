"""What vLLM itself does not do on a CPU, in its own words, so that nobody takes it for proven here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conftest import Run


@pytest.mark.shows("not on CPU", "sleep mode: freeing and restoring memory")
def test_sleep_mode_is_refused_by_vllm_itself(
    engines: Run,
    checkpoint: Callable[[str], Path],
    record_property: Callable[[str, object], None],
) -> None:
    (result,) = engines(
        [
            {
                "model": str(checkpoint("llama")),
                "kwargs": {"enable_sleep_mode": True},
                "only_config": True,
            }
        ]
    )
    assert "Sleep mode is not supported on current platform" in result["error"]["message"]
    record_property("said", "Sleep mode is not supported on current platform.")
