from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.cli import app
from palign_fit.errors import InputError
from palign_fit.inputs.sliders import parse_sliders
from palign_fit.methods.traits import TraitFitter
from typer.testing import CliRunner, Result

from vllm_palign.directions.budget import MAX_ALPHA, MAX_RATIO, MIN_ALPHA
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.sliders import FULL, of_values, trait_effects, wanted_alpha
from vllm_palign.directions.traits import TRAITS
from vllm_palign.persona import Persona, load


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def fitter(tiny: Any) -> TraitFitter:
    return TraitFitter(tiny, 5)


def test_names_and_letters_are_understood() -> None:
    wanted = {"E": 1.5, "N": -0.5}
    assert parse_sliders(["neuroticism=-0.5", "Extraversion=+1.5", "o=0"]) == wanted
    assert parse_sliders(["E=1.5", "n=-.5"]) == wanted
    assert list(parse_sliders(["N=1", "O=3"])) == ["O", "N"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["courage=1"], "no trait has this name"),
        (["ex=1"], "no trait has this name"),
        (["=1"], "no trait has this name"),
        (["OC=1"], "no trait has this name"),
        (["E=1", "extraversion=1"], "E is there twice"),
        (["E=nan"], "not a number within"),
        (["E=inf"], "not a number within"),
        (["E=3.01"], "not a number within"),
        (["E"], "not a number within"),
        (["E=much"], "not a number within"),
        (["E=0", "A=0"], "nothing to steer towards"),
        ([], "nothing to steer towards"),
    ],
)
def test_what_is_no_trait_value_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_sliders(arguments)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(InputError, match="3 problem"):
        parse_sliders(["x=1", "E=9", "A=1", "A=2"])


def test_alpha_grows_with_the_values_and_nothing_else_changes(fitter: TraitFitter) -> None:
    whole, budget = fitter.directions.whole, fitter.budget
    small, disturbed, _ = of_values(whole, {"E": 0.5, "N": -0.25})
    large, _, _ = of_values(whole, {"E": 1.5, "N": -0.75})
    assert np.allclose(small.offsets, large.offsets, rtol=1e-4)
    alpha = budget.alpha(disturbed)
    assert wanted_alpha(alpha, {"E": FULL}) == alpha == 2 * wanted_alpha(alpha, {"E": FULL / 2})
    one = fitter.fit("x", {"E": 0.5, "N": -0.25})
    three = fitter.fit("x", {"E": 1.5, "N": -0.75})
    assert three.alpha == pytest.approx(3 * one.alpha, rel=0.02) or three.alpha == MAX_ALPHA


def test_opposite_values_give_opposite_offsets(fitter: TraitFitter) -> None:
    one, _, _ = of_values(fitter.directions.whole, {"O": 1.0, "A": -2.0})
    other, _, _ = of_values(fitter.directions.whole, {"O": -1.0, "A": 2.0})
    assert np.allclose(one.offsets, -other.offsets, rtol=1e-5)


def test_responses_are_measured_under_directions_that_do_not_know_the_inventory(
    fitter: TraitFitter,
) -> None:
    directions = fitter.directions
    assert not directions.traits.rows.any() and directions.whole.rows.all()
    assert len(directions.traits.basis) == len(TRAITS)
    assert (directions.traits.basis != directions.whole.basis[:5]).any()


def test_a_trait_effect_is_half_of_plus_keyed_minus_minus_keyed(inventory: Inventory) -> None:
    change = np.array([0.7 + 0.3 * item.sign * (item.trait == "C") for item in inventory.items])
    assert trait_effects(change, inventory) == pytest.approx(
        {"O": 0, "C": 0.3, "E": 0, "A": 0, "N": 0}
    )


def test_the_bound_on_perplexity_holds_for_extreme_values(fitter: TraitFitter) -> None:
    values = {"O": 3.0, "C": -3.0, "E": 3.0, "A": -3.0, "N": 3.0}
    one = fitter.fit("x", values)
    assert (
        one.fit["perplexity"] <= 1.0001 * MAX_RATIO * one.fit["perplexity_plain"]
        or one.alpha == MIN_ALPHA
    )
    assert one.fit["sliders"] == values and set(one.fit["effects"]) == set(TRAITS)
    assert Persona.from_bytes(one.to_bytes()) == one


def test_the_command_writes_a_persona_and_says_what_it_does(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out, cache = tmp_path / "bold.safetensors", tmp_path / "cache"
    command: list[object] = [
        "traits",
        "E=+1.5",
        "neuroticism=-0.5",
        "--model",
        tiny_checkpoint,
        "--heads",
        4,
    ]
    command += ["--device", "cpu", "--cache", cache, "--out", out]
    result = call(*command, "--json")
    assert result.exit_code == 0, result.output
    told, persona = json.loads(result.stdout), load(out)
    assert (persona.name, persona.method) == ("bold", "palign-traits")
    assert told["digest"] == persona.digest and told["fit"] == persona.fit
    assert persona.fit["sliders"] == {"E": 1.5, "N": -0.5}
    before = out.read_bytes()
    again = call(*command, "--no-cache", "--fail-weak")
    assert again.exit_code == (3 if persona.fit["weak"] else 0)
    assert out.read_bytes() == before
    assert list(cache.iterdir())
    card = call("inspect", out).stdout
    assert "palign-traits" in card and "E +1.5" in card


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--heads", "0"], "heads is 0"),
        (["--heads", "13"], "has 12 heads in all"),
        (["--name", "../x"], "--name"),
        (["--out", "none/x.safetensors"], "in a folder that is there"),
    ],
)
def test_bad_options_end_with_exit_2_and_write_nothing(
    more: list[str], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    result = call("traits", "E=1", "--model", tiny_checkpoint, "--out", out, *more)
    assert result.exit_code == 2 and message in result.stderr
    assert not out.exists()
