from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit import alpha as alpha_module
from palign_fit.alpha import GRID, Trial, Yardstick, choose_trial, search_alpha
from palign_fit.answers import Subject
from palign_fit.cli import app
from palign_fit.contents import TYPICAL, ContentMethod, deviations, trait_scores
from palign_fit.errors import InputError
from palign_fit.fit import Settings, check_subject, fit_personas, is_weak
from palign_fit.inventory import Inventory, parse_inventory
from palign_fit.reference import ReferenceMethod
from typer.testing import CliRunner

from tests.fit.conftest import answer_sheet
from vllm_palign.persona import Persona


def subject(inventory: Inventory, seed: int, missing: int = 0, name: str = "ann") -> Subject:
    sheet = answer_sheet(inventory, seed, missing)
    return Subject(name, np.array([np.nan if v is None else v for v in sheet.values()], float))


def nothing(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def content(tiny: Any, inventory: Inventory) -> ContentMethod:
    return ContentMethod.prepare(tiny, inventory, 0, nothing)


@pytest.fixture(scope="module")
def reference(tiny: Any, inventory: Inventory) -> ReferenceMethod:
    return ReferenceMethod.prepare(tiny, inventory, 0, nothing)


@pytest.fixture(scope="module")
def yardstick(tiny: Any, inventory: Inventory) -> Yardstick:
    return Yardstick.measure(tiny, inventory)


@pytest.fixture(scope="module", params=["palign", "pas-reference"])
def persona(request: pytest.FixtureRequest, tiny: Any, inventory: Inventory) -> Persona:
    settings = Settings(method=request.param, heads=5)
    (one,) = fit_personas(tiny, inventory, [subject(inventory, 1)], settings)
    return one


def test_the_record_holds_what_was_measured(persona: Persona, inventory: Inventory) -> None:
    fit = persona.fit
    assert len(persona.layers) == len(fit["scores"]) == 5
    assert fit["inventory"] == {"digest": inventory.digest, "items": 120, "name": inventory.name}
    assert (fit["answered"], fit["seed"], fit["dtype"]) == (120, 0, "float32")
    assert [trial["alpha"] for trial in fit["alphas"]] == list(GRID[: len(fit["alphas"])])
    (chosen,) = (trial for trial in fit["alphas"] if trial["alpha"] == persona.alpha)
    for name in ("effect", "alignment", "perplexity"):
        assert fit[name] == chosen[name]
    assert persona.base_model == "tiny-fit"
    assert (persona.num_layers, persona.num_heads, persona.head_dim) == (3, 4, 16)


def test_the_persona_survives_its_file(persona: Persona) -> None:
    again = Persona.from_bytes(persona.to_bytes())
    assert again == persona and again.fit == persona.fit


def test_answers_without_content_are_reported_as_weak(persona: Persona) -> None:
    """Random answers, random model: nothing holds out, and the file says so."""
    assert persona.fit["weak"] is True
    assert any(warning.startswith("weak") for warning in persona.fit["warnings"])


@pytest.mark.parametrize("method", ["palign", "pas-reference"])
def test_the_same_fit_gives_the_same_bytes_in_this_and_another_process(
    method: str, tiny_checkpoint: Path, answers_file: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{n}.safetensors" for n in range(2)]
    command = ["run", "--model", str(tiny_checkpoint), "--answers", str(answers_file)]
    command += ["--method", method, "--heads", "4", "--device", "cpu", "--allow-weak", "--out"]
    assert CliRunner().invoke(app, [*command, str(outs[0])]).exit_code == 0
    subprocess.run([sys.executable, "-m", "palign_fit", *command, str(outs[1])], check=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_other_subjects_in_the_file_do_not_change_a_persona(
    tiny: Any, inventory: Inventory
) -> None:
    ann, ben = subject(inventory, 1), subject(inventory, 2, name="ben")
    settings = Settings(heads=4, alpha=1.0)
    both = list(fit_personas(tiny, inventory, [ben, ann], settings))
    assert [one.name for one in both] == ["ben", "ann"]
    assert list(fit_personas(tiny, inventory, [ann], settings)) == both[1:]
    assert both[0] != both[1]


def test_agreeing_with_a_minus_keyed_item_lowers_the_trait() -> None:
    two = parse_inventory(
        "id,text,trait,facet,key\na,talk a lot,E,f,+\nb,keep quiet,E,f,-\n", source="i", name="i"
    )
    rows = np.ones(2, bool)
    for sheet, sign in (([5, 1], 1), ([1, 5], -1)):
        assert np.sign(trait_scores(Subject("x", np.array(sheet, float)), two, rows)["E"]) == sign
    usual = np.array([TYPICAL["E"], 6 - TYPICAL["E"]])
    assert np.allclose(deviations(Subject("x", usual), two), 0)


def test_opposite_people_get_opposite_directions(
    content: ContentMethod, inventory: Inventory
) -> None:
    """Mirror the answers around what is usual, and every offset turns round."""
    ann = subject(inventory, 3)
    away = deviations(ann, inventory)
    mirrored = Subject("not-ann", ann.agreement - 2 * away)
    rows = np.ones(120, bool)
    one, other = content.fit(ann, rows, 12), content.fit(mirrored, rows, 12)
    assert np.allclose(one.offsets, -other.offsets, atol=1e-5)


def test_content_labels_follow_keyings(content: ContentMethod, inventory: Inventory) -> None:
    outgoing = np.array(
        [3 + 2 * item.sign if item.trait == "E" else 3 for item in inventory.items], float
    )
    adjectives, statements, items = content.contrasts(Subject("x", outgoing), np.ones(120, bool))
    for place, (trait, sign) in enumerate(content.poles):
        if trait == "E":
            assert np.sign(adjectives.weights[place]) == sign
    for place, item in enumerate(inventory.items):
        if item.trait == "E":
            assert np.sign(statements.weights[place]) == item.sign
            assert np.sign(items.weights[place]) == item.sign


def test_reference_labels_are_agreement_with_the_text_whatever_the_key(
    reference: ReferenceMethod,
) -> None:
    sheet = np.full(120, np.nan)
    sheet[[0, 1, 30, 31]] = [5, 1, 4, 3]
    contrast = reference.contrast(Subject("x", sheet), np.ones(120, bool))
    assert contrast.weights.tolist() == [1, -1, 1, -1, 1, -1]
    wanted = np.concatenate([reference.agree[[0, 1, 30]], reference.disagree[[0, 1, 30]]])
    assert (contrast.activations == wanted).all()
    assert (contrast.folds[:3] == contrast.folds[3:]).all()


@pytest.mark.parametrize("name", ["content", "reference"])
def test_held_out_answers_and_texts_never_reach_the_direction(
    name: str, inventory: Inventory, request: pytest.FixtureRequest
) -> None:
    method = request.getfixturevalue(name)
    ann = subject(inventory, 4)
    rows = np.arange(120) % 3 != 0
    other = np.where(rows, ann.agreement, 6 - ann.agreement)
    one = method.fit(ann, rows, 6)
    two = method.fit(Subject("ann", other), rows, 6)
    assert (one.layers == two.layers).all() and (one.offsets == two.offsets).all()
    if name == "content":
        sizes = [len(part.weights) for part in method.contrasts(ann, rows)]
        assert sizes == [100, 80, 80]


def test_alpha_is_measured_only_under_directions_that_did_not_see_the_item(
    yardstick: Yardstick, content: ContentMethod, inventory: Inventory
) -> None:
    ann = subject(inventory, 5, missing=7)
    asked: list[np.ndarray[Any, Any]] = []
    measured: list[np.ndarray[Any, Any]] = []

    class Spy:
        name, score_name = "spy", "none"

        def check(self, one: Subject) -> None: ...

        def fit(self, one: Subject, rows: Any, count: int) -> Any:
            asked.append(rows)
            return content.fit(one, rows, count)

    class Ruler(Yardstick):
        def change(self, heads: Any, alpha: float, rows: Any) -> Any:
            measured.append(rows)
            return super().change(heads, alpha, rows)

    heads = content.fit(ann, np.isfinite(ann.agreement), 4)
    search_alpha(Ruler(**vars(yardstick)), Spy(), ann, heads, grid=[1.0], seed=0)
    assert len(asked) == len(measured) == alpha_module.HELD_OUT_FOLDS
    assert not any((fitted & held).any() for fitted, held in zip(asked, measured, strict=True))
    assert (np.sum(measured, axis=0) == np.isfinite(ann.agreement)).all()


def test_the_strongest_effect_within_the_perplexity_bound_wins() -> None:
    trials = [Trial(1, 0.1, 0.3, 10), Trial(2, 0.3, 0.3, 11.4), Trial(4, 0.9, 0.3, 11.6)]
    assert choose_trial(trials, 10).alpha == 2
    assert choose_trial(trials, 5).alpha == 1


def test_the_search_stops_after_the_first_alpha_beyond_the_bound(
    yardstick: Yardstick, content: ContentMethod, inventory: Inventory, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        Yardstick, "perplexity", lambda self, heads, alpha: self.plain_perplexity * (1 + alpha / 10)
    )
    ann = subject(inventory, 6)
    heads = content.fit(ann, np.ones(120, bool), 4)
    trials = search_alpha(yardstick, content, ann, heads, grid=GRID, seed=0)
    assert [trial.alpha for trial in trials] == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ([3.0] * 120, "describes nobody"),
        ([np.nan] * 115 + [1.0, 2.0, 3.0, 4.0, 5.0], "wanted at least 6"),
    ],
)
def test_answers_that_describe_nobody_are_refused(sheet: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_subject(Subject("x", np.array(sheet)))


def test_agreeing_a_little_with_everything_is_no_personality(
    tiny: Any, inventory: Inventory
) -> None:
    """Usual answers to C are 3.5 and 2.5 by keying: half a point above both says nothing."""
    sheet = [
        (4.0 if item.sign > 0 else 3.0) if item.trait == "C" else np.nan for item in inventory.items
    ]
    with pytest.raises(InputError, match="nothing to steer towards"):
        next(fit_personas(tiny, inventory, [Subject("x", np.array(sheet))], Settings(heads=4)))


@pytest.mark.parametrize("method", ["palign", "pas-reference"])
def test_very_few_answers_make_a_weak_persona(method: str, tiny: Any, inventory: Inventory) -> None:
    sheet = np.full(120, np.nan)
    sheet[:10] = [5, 1, 4, 2, 5, 1, 2, 4, 5, 1]
    (one,) = fit_personas(
        tiny, inventory, [Subject("x", sheet)], Settings(method, heads=4, alpha=1)
    )
    assert one.fit["answered"] == 10 and one.offsets.any()


def test_the_reference_refuses_a_subject_who_takes_no_side(tiny: Any, inventory: Inventory) -> None:
    sheet = np.full(120, 3.0)
    sheet[:4] = 5
    with pytest.raises(InputError, match="4 answers other than 3"):
        next(fit_personas(tiny, inventory, [Subject("x", sheet)], Settings("pas-reference", 4)))


def test_a_trait_without_answers_is_said_to_be_taken_as_average(
    tiny: Any, inventory: Inventory
) -> None:
    ann = subject(inventory, 7)
    open_items = [item.trait == "O" for item in inventory.items]
    ann.agreement[open_items] = np.nan
    (one,) = fit_personas(tiny, inventory, [ann], Settings(heads=4, alpha=1))
    assert "no answers on O: taken as average there" in one.fit["warnings"]
    assert one.fit["alpha_from"] == "the user" and one.alpha == 1


def test_settings_list_all_their_problems() -> None:
    with pytest.raises(InputError) as error:
        Settings(method="x", heads=0, alpha=-1, seed=-1)
    assert str(error.value).count("wanted") == 4


def test_weak_means_within_what_chance_gives() -> None:
    rng = np.random.default_rng(0)
    chance = [np.corrcoef(rng.normal(size=(2, 100)))[0, 1] for _ in range(4000)]
    assert np.mean([not is_weak(r, 100) for r in chance]) == pytest.approx(0.05, abs=0.015)


def test_on_the_demo_model_outgoing_and_withdrawn_people_part(demo_model: Path) -> None:
    """Alice and bob of examples/: both hold out, and their statements move apart."""
    from palign_fit.answers import read_answers
    from palign_fit.inventory import built_in
    from palign_fit.likelihood import statement_loglik
    from palign_fit.model import open_model
    from palign_fit.prompts import OPENINGS, chat_prefix, continuation
    from palign_fit.steer import steered

    model = open_model(str(demo_model), device="cpu")
    answers = Path(__file__).parents[2] / "examples" / "answers.json"
    people = read_answers(answers, built_in())
    fitted = fit_personas(model, built_in(), people, Settings(alpha=1.5))
    personas = {one.name: one for one in fitted}
    prefix = chat_prefix(model.tokenizer, OPENINGS[0])
    outgoing = (
        "I can not wait to see everybody tonight.",
        "I am happy to dance with strangers.",
        "I want to throw a dinner for the whole street.",
        "I feel great in a crowd.",
    )
    withdrawn = (
        "I hope nobody talks to me tonight.",
        "I am glad when everybody has left.",
        "I want to sit alone in my room.",
        "I feel lost in a crowd.",
    )
    tokens = [continuation(model.tokenizer, line) for line in outgoing + withdrawn]
    plain = statement_loglik(model, prefix, tokens)
    lean = {}
    for name, one in personas.items():
        assert one.fit["weak"] is False and one.fit["alignment"] > 0.2
        with steered(model, one):
            change = statement_loglik(model, prefix, tokens) - plain
        lean[name] = change[:4].mean() - change[4:].mean()
    assert lean["alice"] > 0.1 and lean["bob"] < -0.1, lean
