"""The unsteered model, and what steering changes in it, by real forward passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palign_fit.errors import FitError
from palign_fit.model import prompts
from palign_fit.model.likelihood import Reader, reader_for, statement_loglik
from palign_fit.model.model import OpenedModel
from palign_fit.model.steer import steered_by
from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask, Reals


@dataclass(frozen=True, eq=False)
class Baseline:
    """``plain`` float64 [N], log-likelihood of each item's statement in nats per token, NaN where it
    was not measured."""

    model: OpenedModel
    reader: Reader
    prefix: list[int]
    lines: list[list[int]]
    plain: Reals

    @classmethod
    def measure(cls, model: OpenedModel, inventory: Inventory, rows: Mask) -> Baseline:
        """Measure the items in ``rows`` bool [N]; the others do not even share a batch with them.

        Raises FitError where the model does not give finite likelihoods.
        """
        reader = reader_for(model)
        prefix = prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0])
        lines = [
            prompts.continuation(model.tokenizer, prompts.statement(item.text))
            for item in inventory.items
        ]
        plain = np.full(len(lines), np.nan)
        read = [line for line, row in zip(lines, rows, strict=True) if row]
        plain[rows] = statement_loglik(model, prefix, read, reader)
        if not np.isfinite(plain[rows]).all():
            raise FitError(f"{model.base_model}: gives NaN or Inf likelihoods; try --dtype float32")
        return cls(model, reader, prefix, lines, plain)

    def change(self, heads: SteeredHeads, alpha: float, rows: Mask) -> Reals:
        """Steered minus plain for the items in ``rows`` bool [N]: float64, nats per token."""
        chosen = [line for line, used in zip(self.lines, rows, strict=True) if used]
        if not chosen:
            return np.zeros(0)
        with steered_by(self.model, heads.layers, heads.heads, np.float32(alpha) * heads.offsets):
            found = statement_loglik(self.model, self.prefix, chosen, self.reader)
        return found - self.plain[rows]
