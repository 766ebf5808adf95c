"""Answers and trait values to personas, by directions alone."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.directions import tiny_directions
from vllm_palign.directions import Directions
from vllm_palign.directions.basis import relative_size
from vllm_palign.directions.directions import FOLDS
from vllm_palign.directions.scores import certainty, expected_share, reliability
from vllm_palign.directions.sheet import agreement_of, trait_values
from vllm_palign.directions.sliders import FULL
from vllm_palign.directions.traits import CORRELATIONS, TRAITS
from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import Persona


@pytest.fixture(scope="module")
def made() -> Directions:
    return tiny_directions(3, 4, 8)


def answers(made: Directions, seed: int = 0, count: int = 40) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {item.id: int(rng.integers(1, 6)) for item in made.inventory.items[:count]}


@pytest.mark.parametrize(
    "values",
    [{"E": 1.5, "extraversion": None}, {"extraversion": None, "E": 1.5}, {"E": 1.5, "O": 0}],
)
def test_null_is_no_value_wherever_it_stands(values: dict[str, Any]) -> None:
    assert trait_values(values) == {"E": 1.5}


@pytest.mark.parametrize("values", [{"E": 0, "extraversion": 1.5}, {"extraversion": 1.5, "E": 0}])
def test_a_trait_given_twice_is_refused_in_either_order(values: dict[str, Any]) -> None:
    with pytest.raises(PersonaInvalid, match="E is there twice"):
        trait_values(values)


_DIGESTS = """
import numpy as np
from tests.directions import tiny_directions
made = tiny_directions(3, 16, 64, heads=24, items=120)
rng = np.random.default_rng(0)
print([
    made.from_answers("x", {item.id: int(rng.integers(1, 6)) for item in made.inventory.items}).digest
    for _ in range(40)
])
"""


def test_processors_that_add_up_in_another_order_make_the_same_bytes() -> None:
    """OpenBLAS has kernels of its own for each; ``Nehalem`` runs on every x86, and elsewhere the variable is nothing."""
    said = [
        subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            check=True, capture_output=True, text=True,
        ).stdout
        for variables in ({}, {"OPENBLAS_CORETYPE": "Nehalem"})
    ]  # fmt: skip
    assert said[0] == said[1]


def test_a_persona_of_answers_is_a_file_like_any_other(made: Directions) -> None:
    one = made.from_answers("ann", answers(made), "of a form")
    again = made.from_answers("ann", dict(reversed(answers(made).items())), "of a form")
    assert one.to_bytes() == again.to_bytes() and one.digest == again.digest
    assert Persona.from_bytes(one.to_bytes()) == one
    assert (one.name, one.description, one.method) == ("ann", "of a form", "palign")
    assert (one.num_layers, one.num_heads, one.head_dim) == (3, 4, 8)
    assert one.fit["answered"] == 40 and one.fit["checked"] is False
    assert one.fit["expected_alignment"] == pytest.approx(0.6)
    assert made.from_answers("ann", answers(made, 1)).digest != one.digest


def test_a_persona_does_not_say_what_was_answered(made: Directions) -> None:
    given = answers(made, count=17)
    fit = made.from_answers("ann", given).fit
    assert "items" not in fit
    assert not any(item in str(fit) for item in given)


def test_offsets_are_the_product_of_weights_and_basis(made: Directions) -> None:
    agreement = agreement_of(answers(made), made.inventory)
    weights = made.whole.weights(agreement)
    raw = np.einsum("w,wkd->kd", weights, made.whole.basis.astype(np.float64))
    wanted = raw / relative_size(raw, made.whole.covariance.astype(np.float64))
    one = made.from_answers("ann", answers(made))
    assert np.allclose(one.offsets, wanted, rtol=1e-5)
    assert (one.layers == made.layers).all()


def test_missing_answers_are_null_zero_or_not_there(made: Directions) -> None:
    given = answers(made, count=20)
    spelled = given | {"q30": None, "q31": 0}
    assert made.from_answers("a", given).digest == made.from_answers("a", spelled).digest


def test_few_answers_are_believed_less_and_steer_less(made: Directions) -> None:
    every = np.ones(40, bool)
    shares, alphas = [], []
    for count in (40, 20, 10, 6):
        given = answers(made, count=count)
        agreement = agreement_of(given, made.inventory)
        shares.append(expected_share(agreement, made.inventory, every))
        alphas.append(made.from_answers("a", given).fit["expected_alignment"])
    assert shares[0] == 1.0 and shares == sorted(shares, reverse=True)
    assert alphas == sorted(alphas, reverse=True)
    # One answer of eight to E: the others' certainty is untouched.
    agreement = np.full(40, 4.0)
    agreement[[7, 12, 17, 22, 27, 32, 37]] = np.nan
    found = certainty(agreement, made.inventory, every)
    assert found[2] == pytest.approx(reliability(np.array(1.0)) / reliability(np.array(8.0)))
    assert (found[[0, 1, 3, 4]] == 1).all()


def test_alpha_follows_the_share_of_a_questionnaire(made: Directions) -> None:
    agreement = agreement_of(answers(made, count=10), made.inventory)
    share = expected_share(agreement, made.inventory, made.whole.rows)
    weights = made.whole.weights(agreement)
    disturbance = made.whole.disturbance(weights, made.whole.offsets(weights)[1])
    found = made.fit("a", agreement)
    assert 0.3 < share < 0.9
    assert found.chosen.alpha == made.budget.alpha(disturbance, share)
    assert made.fit("a", agreement, alpha=3.0).chosen.alpha == 3.0
    persona = found.persona(made.model, made.inventory, listed=False)
    assert persona.fit["alpha_from"].endswith("for the answers that are missing")
    assert any("only 10 answers" in one for one in persona.fit["warnings"])


def test_a_persona_warns_of_traits_without_answers_and_of_sameness(made: Directions) -> None:
    only_o_and_c = {f"q{n + 1}": 1 + n % 5 for n in range(40) if n % 5 < 2}
    assert any(
        one.startswith("no answers on E A N")
        for one in made.from_answers("a", only_o_and_c).fit["warnings"]
    )
    same = {f"q{n + 1}": 5 for n in range(39)} | {"q40": 1}
    assert any(
        "39 of 40 answers are the same" in one
        for one in made.from_answers("a", same).fit["warnings"]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"q1": 6, "q2": 2.5, "x9": 3, "q3": "5", "q4": True},
            "answers: 'q1' is '6'.*'q2'.*'x9' is no item",
        ),
        ({"q1": math.nan}, "'q1' is 'nan'"),
        ({"q1": -1}, "wanted 1 to 5"),
        ({"q1": [1]}, "wanted 1 to 5"),
        ({f"q{n}": 3 for n in range(1, 6)}, "answers: 5 answers, wanted at least 6"),
        ({}, "answers: 0 answers, wanted at least 6"),
        ({f"q{n}": 3 for n in range(1, 30)}, "all 29 answers are 3"),
        ({"nobody's item" * 30: 3} | {f"y{n}": 1 for n in range(50)}, "and 39 more"),
    ],
)
def test_answers_that_break_the_rules_are_all_named(
    made: Directions, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(PersonaInvalid, match=message) as raised:
        made.from_answers("a", given)
    assert raised.value.status == 400 and raised.value.param == "answers"
    assert len(raised.value.message) < 1500


def test_answers_that_are_usual_everywhere_leave_nothing_to_steer(made: Directions) -> None:
    with pytest.raises(PersonaInvalid, match="nothing to steer towards"):
        made.fit("a", made.inventory.usual.copy())


def test_trait_values_by_name_or_letter(made: Directions) -> None:
    one = made.from_traits("bold", {"extraversion": 1.5, "N": -0.5, "o": None})
    assert one.digest == made.from_traits("bold", {"n": -0.5, "Extraversion": 1.5}).digest
    assert one.method == "palign-traits" and one.fit["sliders"] == {"E": 1.5, "N": -0.5}
    assert set(one.fit["effects"]) == set(TRAITS)
    assert one.fit["expected_alignment"] == one.fit["alignment"]


def test_alpha_grows_with_the_values_up_to_what_text_bears(made: Directions) -> None:
    one = made.from_traits("a", {"E": FULL / 4}).alpha
    assert made.from_traits("a", {"E": -FULL / 2}).alpha == pytest.approx(2 * one, rel=0.01)
    much = made.from_traits("a", dict.fromkeys(TRAITS, 3.0))
    assert much.fit["perplexity"] <= 1.151 * much.fit["perplexity_plain"]
    assert any("the values ask for alpha" in text for text in much.fit["warnings"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"courage": 1, "E": 3.01, "extraversion": 1, "A": "1"},
            "'courage' is no trait.*'E' is '3.01'.*'A'",
        ),
        ({"E": 1, "extraversion": 1}, "E is there twice"),
        ({"E": 0, "A": None}, "every trait is 0"),
        ({"E": math.inf}, "'E' is 'inf'"),
        ({"E": 10**400}, "wanted -3 to 3"),
        ({"E": True}, "wanted -3 to 3"),
        ({}, "every trait is 0"),
    ],
)
def test_trait_values_that_break_the_rules_are_all_named(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(PersonaInvalid, match=message) as raised:
        trait_values(given)
    assert raised.value.param == "traits"


def test_the_questionnaire_is_what_a_form_needs(made: Directions) -> None:
    body = made.questionnaire()
    assert body["object"] == "list" and len(body["data"]) == 40
    assert body["data"][0] == {
        "id": "q1",
        "text": "do thing 1",
        "trait": "O",
        "facet": "f",
        "key": "+",
    }
    assert list(body["scale"]) == ["1", "2", "3", "4", "5"]
    assert [len(body["short"][name]) for name in ("10", "30", "60")] == [10, 30, 40]
    assert body["short"]["30"][:10] == body["short"]["10"]
    assert body["usual"]["q1"] == 3.6 and body["usual"]["q6"] == 2.4


def test_held_out_figures_know_nothing_of_their_fold(made: Directions) -> None:
    """Other answers in a fold: what its items are measured by stays."""
    one = agreement_of(answers(made), made.inventory)
    for fold in range(FOLDS):
        held = made.folds == fold
        other = np.where(held, 6 - one, one)
        blind = made.blind[fold]
        assert (blind.weights(one) == blind.weights(other)).all()


def test_nothing_that_is_not_finite_or_does_not_fit_can_be_built(made: Directions) -> None:
    with pytest.raises(ValueError, match="reach is 2"):
        dataclasses.replace(made, reach=2.0)
    wrong = dataclasses.replace(made.whole, basis=made.whole.basis[:, :3])
    with pytest.raises(ValueError, match=r"whole: basis is \[45, 3, 8\], wanted \[45, 4, 8\]"):
        dataclasses.replace(made, whole=wrong)


def test_trait_correlations_are_those_of_some_population() -> None:
    assert (CORRELATIONS == CORRELATIONS.T).all()
    assert np.linalg.eigvalsh(CORRELATIONS).min() > 0
