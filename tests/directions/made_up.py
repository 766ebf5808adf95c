"""Directions of a made-up model: nothing is known of it, all else is as in a real file."""

from __future__ import annotations

import numpy as np

from vllm_palign.directions import Directions, parse_directions, to_bytes
from vllm_palign.directions.basis import Basis
from vllm_palign.directions.budget import Budget
from vllm_palign.directions.directions import FOLDS
from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.directions.people import best_items
from vllm_palign.directions.record import ModelFacts
from vllm_palign.directions.traits import TRAITS


def inventory(items: int = 40) -> Inventory:
    """``items`` items ``q1`` ..., traits and keys in turn."""
    return Inventory(
        "made-up",
        tuple(
            Item(f"q{n + 1}", f"do thing {n + 1}", TRAITS[n % 5], "f", 1 - 2 * (n // 5 % 2))
            for n in range(items)
        ),
    )


def tiny_directions(
    num_layers: int,
    num_heads: int,
    head_dim: int,
    heads: int = 4,
    *,
    seed: int = 0,
    items: int = 40,
) -> Directions:
    """Directions as they are read from a file; the response to each trait is what its items are keyed for."""
    rng = np.random.default_rng(seed)
    own = inventory(items)
    folds = (np.arange(items) // 5 % FOLDS).astype(np.int32)

    def basis(rows: np.ndarray, weights: int) -> Basis:
        flat = np.sort(rng.choice(num_layers * num_heads, heads, replace=False))
        keyed = own.of_trait * own.signs
        single = np.eye(items)[: weights - 5]
        spread = rng.normal(size=(heads, head_dim, head_dim)) / head_dim
        mixed = rng.normal(size=(weights, weights)) / weights
        offsets = rng.normal(size=(weights, heads, head_dim))
        if weights > 5:
            offsets[5:][~rows] = 0
        return Basis(
            inventory=own,
            rows=rows,
            layers=(flat // num_heads).astype(np.int32),
            heads=(flat % num_heads).astype(np.int32),
            scores=rng.uniform(size=heads).astype(np.float32),
            basis=offsets.astype(np.float32),
            response=np.concatenate([keyed, single * 0.1]).astype(np.float32),
            quadratic=(mixed @ mixed.T).astype(np.float32),
            covariance=(spread @ spread.swapaxes(1, 2) + np.eye(head_dim)).astype(np.float32),
        )

    every = np.ones(items, bool)
    whole = basis(every, 5 + items)
    made = Directions(
        model=ModelFacts("tiny", num_layers, num_heads, head_dim, "float32"),
        made_with="0" * 64,
        whole=whole,
        blind=tuple(basis(every & (folds != fold), 5 + items) for fold in range(FOLDS)),
        traits=basis(~every, 5),
        folds=folds,
        budget=Budget(plain=20.0, rate=10.0),
        reach=1.0,
        doses=(1.0, 0.5),
        followed=np.full((5, 2), 0.6),
        order=tuple(best_items(whole)),
        seed=0,
        tool="tests",
    )
    return parse_directions(to_bytes(made))
