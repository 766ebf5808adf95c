"""What a front end takes out of a request's sampling parameters; whole requests are in tests/engine and tests/http."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_palign import PersonaInvalid
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.admission.handoff import PLAIN


@pytest.mark.parametrize(
    "extra_args",
    [
        {"persona": "alice"},
        {"Palign": "alice"},
        {"persona": {"id": "alice", "strength": 2}, "seen": 1},
        {"persona_scope": "all"},
    ],
)
def test_extra_args_that_would_not_be_applied_are_refused(extra_args: dict[str, Any]) -> None:
    front: Any = object.__new__(FrontEnd)
    with pytest.raises(PersonaInvalid, match=r"wanted extra_args=persona_args\("):
        front._granted(SimpleNamespace(extra_args=extra_args), None)


@pytest.mark.parametrize("extra_args", [None, {}, {"kv_transfer_params": {}, "personality": 1}])
def test_extra_args_of_others_are_nothing_to_us(extra_args: Any) -> None:
    front: Any = object.__new__(FrontEnd)
    assert front._granted(SimpleNamespace(extra_args=extra_args), None) is PLAIN
