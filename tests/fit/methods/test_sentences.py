from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from palign_fit.inputs import traits
from palign_fit.inputs.inventory import parse_inventory
from palign_fit.methods.palign.directions import PARTS, _families
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.methods.palign.sentences import Examples, Kind, denied

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.traits import TRAITS


@pytest.mark.parametrize(
    ("said", "opposite"),
    [
        ("make friends easily", "do not make friends easily"),
        ("am the life of the party", "am not the life of the party"),
        ("am not interested in theories", "am interested in theories"),
        ("don't like crowds", "like crowds"),
        ("do not like crowds", "like crowds"),
        ("can't stand noise", "can stand noise"),
        ("cannot sit still", "can sit still"),
        ("can talk for hours", "can not talk for hours"),
        ("would never lie", "would not never lie"),
        ("would not copy answers", "would copy answers"),
        ("must not be disturbed", "must be disturbed"),
        ("never lose my temper", "often lose my temper"),
        ("rarely worry", "often worry"),
        ("seldom joke", "often joke"),
        ("amuse my friends", "do not amuse my friends"),
        ("canoe every summer", "do not canoe every summer"),
    ],
)
def test_a_denial_turns_a_statement_round(said: str, opposite: str) -> None:
    assert denied(said) == opposite


def test_every_pole_has_thirty_adjectives_and_none_stands_twice() -> None:
    poles = [pole.split(", ") for poles in traits.ADJECTIVES.values() for pole in poles]
    assert {len(pole) for pole in poles} == {30}
    words = [word for pole in poles for word in pole]
    assert len(set(words)) == len(words)
    assert all(re.fullmatch(r"[a-z]+([- ][a-z]+)*", word) for word in words)


def test_every_sentence_stands_once_and_beside_its_denial(inventory: Inventory) -> None:
    used = np.arange(120) % 2 == 0
    examples = Examples.of(inventory, used)
    assert Counter(examples.questionnaires.tolist()) == {
        Kind.ADJECTIVES: 300,
        Kind.STATEMENTS: 720,
        Kind.ITEMS: 120,
    }
    assert len(set(examples.sentences)) == len(examples.sentences)
    assert (
        examples.items[examples.questionnaires == Kind.ITEMS].tolist()
        == np.repeat(np.flatnonzero(used), 2).tolist()
    )
    said = np.flatnonzero(examples.denials) - 1
    assert not examples.denials[said].any()
    assert (examples.loadings[said] == -examples.loadings[said + 1]).all()
    assert (np.abs(examples.loadings).sum(1) == 1).all()
    assert not [sentence for sentence in examples.sentences if "not not " in sentence]


def test_a_sentence_of_the_users_inventory_is_in_no_other_questionnaire(
    inventory: Inventory,
) -> None:
    rows = "\n".join(
        f"x{n},{item.text},{item.trait},f,{'+' if item.sign > 0 else '-'}"
        for n, item in enumerate(inventory.items[:3])
    )
    own = parse_inventory(f"id,text,trait,facet,key\n{rows}\n", source="own", name="own")
    examples = Examples.of(own, np.array([True, False, False]))
    counts = Counter(examples.questionnaires.tolist())
    assert (counts[Kind.BUILT_IN], counts[Kind.ITEMS]) == (2 * (120 - 3), 2)


def test_a_keying_says_which_way_agreeing_moves_the_trait(inventory: Inventory) -> None:
    examples = Examples.of(inventory, np.ones(120, bool))
    for row in np.flatnonzero((examples.questionnaires == Kind.ITEMS) & ~examples.denials):
        item = inventory.items[examples.items[row]]
        assert examples.sentences[row] == f"I {item.text}."
        assert examples.loadings[row, TRAITS.index(item.trait)] == item.sign


def test_a_statement_and_its_denial_are_never_parted(inventory: Inventory) -> None:
    examples = Examples.of(inventory, np.ones(120, bool))
    nothing = np.zeros((len(examples.sentences), 1, 1, 1), np.float32)
    families = list(_families(SentenceGradients(examples, nothing, nothing), np.ones(120, bool)))
    assert [len(groups) for groups in families] == [1, *[2] * PARTS, 2]
    for said, denial in families[1:]:
        assert (said.loadings == -denial.loadings).all()
