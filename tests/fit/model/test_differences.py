from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from palign_fit.model import differences as diff

from tests.fit.model.test_speaking import alone, persona


def test_what_moves_is_measured_token_by_token_as_each_text_alone(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    plain, other, answer = (rng.integers(4, 90, n).tolist() for n in (9, 14, 6))
    steered = (persona(1, tiny), 0.5)
    asked = [(plain, (None, 0.0)), (plain, (persona(2, tiny), 0.0)), (plain, steered)]
    asked += [(other, (None, 0.0)), (other, steered)]
    got = diff.differences(tiny, plain, answer, asked)
    assert got.shape == (5, 2)
    np.testing.assert_allclose(got[:2], [[0, 1], [0, 1]], atol=1e-6)

    def logp(prompt: list[int], dose: Any) -> torch.Tensor:
        logits = alone(tiny, [*prompt, *answer[:-1]], dose, len(prompt) - 1)[-len(answer) :]
        return logits.double().log_softmax(-1)

    usual = logp(plain, (None, 0.0))
    for (kl, same), (prompt, dose) in zip(got, asked, strict=True):
        moved = logp(prompt, dose)
        wanted = float((usual.exp() * (usual - moved)).sum(-1).mean())
        assert kl == pytest.approx(wanted, abs=1e-5)
        assert same == (usual.argmax(-1) == moved.argmax(-1)).double().mean()
    assert got[2:, 0].min() > 0.01
    monkeypatch.setattr(diff, "_MOST", 1)
    np.testing.assert_allclose(diff.differences(tiny, plain, answer, asked), got, atol=1e-5)
