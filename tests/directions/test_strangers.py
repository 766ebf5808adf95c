"""Somebody's persona beside those of other people."""

from __future__ import annotations

import numpy as np
import pytest

from tests.directions import tiny_directions
from vllm_palign.directions import Directions
from vllm_palign.directions.norm import PEOPLE, RARE
from vllm_palign.directions.numbers import correlation


@pytest.fixture(scope="module")
def made() -> Directions:
    return tiny_directions(3, 4, 8)


def test_strangers_personas_are_those_that_their_answers_make(made: Directions) -> None:
    people = made.inventory.usual + made.inventory.people.values
    for place in (0, 7, PEOPLE - 1):
        for rows, blind in made.held_out(people[place]):
            weights = blind.weights(people[place])
            wanted = blind.change(weights, blind.size(weights))[rows]
            assert np.allclose(made.strangers.values[place, rows], wanted, rtol=1e-4, atol=1e-5)


def test_a_persona_says_its_rank_and_is_weak_beyond_one_in_twenty(made: Directions) -> None:
    rng = np.random.default_rng(3)
    personas = []
    for _ in range(30):
        answers = {item.id: int(rng.integers(1, 6)) for item in made.inventory.items}
        personas.append(made.from_answers("a", answers))
    for persona in personas:
        assert persona.fit["weak"] is (persona.fit["rank"] > RARE)
        assert persona.fit["alphas"][0]["rank"] == persona.fit["rank"]
        said = [text for text in persona.fit["warnings"] if text.startswith("weak")]
        assert len(said) == persona.fit["weak"]
    assert 0 < sum(persona.fit["weak"] for persona in personas) < 30


def test_strangers_pass_as_often_as_they_should(made: Directions) -> None:
    """The persona of one simulated person, measured on the answers of another: no rank is likelier than another."""
    answers = made.inventory.people.values.astype(np.float64)
    every = np.ones(answers.shape[1], bool)
    ranks = [
        made.strangers.rank(
            answers[at],
            every,
            correlation(made.strangers.values[at - 40].astype(float), answers[at]),
        )
        for at in range(200)
    ]
    assert np.mean(np.array(ranks) <= RARE) == pytest.approx(RARE, abs=0.04)
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.06)
