"""Answers to personas on a tiny random model, and on the demo model."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.cli import app
from palign_fit.errors import FitError, InputError
from palign_fit.fit import open_fitter
from palign_fit.inputs.answers import Subject
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.palign import sentences
from palign_fit.methods.palign.fitter import FOLDS, PalignFitter
from palign_fit.methods.pas_reference.fitter import GRID
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.model.cache import Cache, ModelCache
from palign_fit.model.model import OpenedModel, open_model, wrap
from typer.testing import CliRunner

from tests.conftest import ROOT
from tests.fit.conftest import answer_sheet, fit_personas
from vllm_palign.directions.basis import Basis
from vllm_palign.directions.budget import MAX_RATIO
from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.directions.norm import RARE
from vllm_palign.directions.numbers import correlation, effect
from vllm_palign.directions.scores import deviations
from vllm_palign.directions.traits import TRAITS
from vllm_palign.persona import Persona

METHODS = ["palign", "pas-reference"]
EVERY = np.ones(120, bool)


def subject(inventory: Inventory, seed: int, missing: int = 0, name: str = "ann") -> Subject:
    sheet = answer_sheet(inventory, seed, missing)
    return Subject(name, np.array([np.nan if v is None else v for v in sheet.values()], float))


def one_fit(fitter: Any, person: Subject) -> Persona:
    found = fitter.fit(person)
    assert isinstance(found, Persona), found
    return found


def passes(model: OpenedModel, work: Callable[[], Any]) -> int:
    """How many forward passes ``work`` takes."""
    seen: list[None] = []
    handle = model.projections[0].register_forward_pre_hook(lambda *_: seen.append(None))
    try:
        work()
    finally:
        handle.remove()
    return len(seen)


@pytest.fixture(scope="module")
def fitter(tiny: Any, inventory: Inventory, kept: ModelCache) -> PalignFitter:
    return PalignFitter(tiny, inventory, EVERY, Settings(heads=5), kept)


@pytest.fixture(scope="module", params=METHODS)
def persona(
    request: pytest.FixtureRequest, tiny: Any, inventory: Inventory, kept: ModelCache
) -> Persona:
    settings = Settings(method=request.param, heads=5)
    (one,) = fit_personas(tiny, inventory, [subject(inventory, 3)], settings, kept)
    return one


def test_the_record_holds_what_was_measured(persona: Persona, inventory: Inventory) -> None:
    fit = persona.fit
    assert len(persona.layers) == len(fit["scores"]) == 5
    own = {"digest": inventory.digest, "items": 120, "name": inventory.name}
    assert fit["inventory"] == own | ({"learned": 120} if persona.method == "palign" else {})
    assert (fit["answered"], fit["seed"], fit["dtype"]) == (120, 0, "float32")
    assert (fit["alpha_from"], fit["checked"], fit["max_perplexity_ratio"]) == (
        "perplexity",
        True,
        MAX_RATIO,
    )
    grid = [trial["alpha"] for trial in fit["alphas"]]
    assert grid == (list(GRID[: len(grid)]) if persona.method != "palign" else [persona.alpha])
    (chosen,) = (trial for trial in fit["alphas"] if trial["alpha"] == persona.alpha)
    for name in ("effect", "alignment", "perplexity"):
        assert fit[name] == chosen[name]
    assert persona.base_model == "tiny-fit"
    assert (persona.num_layers, persona.num_heads, persona.head_dim) == (3, 4, 16)


def test_the_persona_survives_its_file(persona: Persona) -> None:
    again = Persona.from_bytes(persona.to_bytes())
    assert again == persona and again.fit == persona.fit


def test_answers_without_content_are_reported_as_weak(persona: Persona) -> None:
    """Random answers, random model: nothing holds out, and the file says so. (One such person in twenty passes.)"""
    assert persona.fit["weak"] is True
    assert any(warning.startswith("weak") for warning in persona.fit["warnings"])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_fit_gives_the_same_bytes_in_this_and_another_process(
    method: str, tiny_checkpoint: Path, answers_file: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{n}.safetensors" for n in range(2)]
    command = ["run", "--model", str(tiny_checkpoint), "--answers", str(answers_file), "--no-cache"]
    command += ["--method", method, "--heads", "4", "--device", "cpu", "--out"]
    assert CliRunner().invoke(app, [*command, str(outs[0])]).exit_code == 0
    subprocess.run([sys.executable, "-m", "palign_fit", *command, str(outs[1])], check=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_other_subjects_who_answered_the_same_items_do_not_change_a_persona(
    tiny: Any, inventory: Inventory, kept: ModelCache
) -> None:
    ann, ben = subject(inventory, 1, 7), subject(inventory, 2, 7, name="ben")
    settings = Settings(heads=5, alpha=1.0)
    both = list(fit_personas(tiny, inventory, [ben, ann], settings, kept))
    assert [one.name for one in both] == ["ben", "ann"]
    (alone,) = fit_personas(tiny, inventory, [ann], settings, kept)
    assert alone.to_bytes() == both[1].to_bytes()
    assert both[0] != both[1]


def test_items_nobody_answered_do_not_change_a_persona(tiny: Any, kept: ModelCache) -> None:
    """Other texts, traits and keys there: only the inventory's digest is another."""
    texts = [f"talk about {n} good tasks" for n in range(40)]
    items = tuple(
        Item(f"x{n}", text, "OCEAN"[n % 5], "f", (-1) ** n) for n, text in enumerate(texts)
    )
    others = tuple(
        dataclasses.replace(item, text=f"worry a lot about {n}", trait="N", sign=1)
        if n % 4 == 3
        else item
        for n, item in enumerate(items)
    )
    answers = np.random.default_rng(0).integers(1, 6, 40).astype(float)
    answers[3::4] = np.nan
    found = []
    for some in (items, others):
        (one,) = fit_personas(
            tiny, Inventory("own", some), [Subject("ann", answers)], Settings(heads=5), kept
        )
        digest = one.fit["inventory"].pop("digest")
        found.append((one.to_bytes(), digest))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def test_opposite_people_get_opposite_offsets(fitter: PalignFitter, inventory: Inventory) -> None:
    """Mirror the answers around what is usual, and every offset turns round."""
    ann = subject(inventory, 3)
    mirrored = Subject("not-ann", ann.agreement - 2 * deviations(ann.agreement, inventory))
    one, other = one_fit(fitter, ann), one_fit(fitter, mirrored)
    assert (one.heads == other.heads).all()
    assert np.allclose(one.offsets, -other.offsets, rtol=1e-4, atol=1e-7)


def test_an_estimate_needs_no_forward_pass_and_says_so(
    tiny: Any, inventory: Inventory, fitter: PalignFitter, kept: ModelCache
) -> None:
    quick = PalignFitter(tiny, inventory, EVERY, Settings(heads=5, check=False), kept)
    people = [subject(inventory, seed, name=f"s{seed}") for seed in range(3)]
    found: list[Any] = []
    assert passes(tiny, lambda: found.extend(map(quick.fit, people))) == 0
    for person, one in zip(people, found, strict=True):
        checked = one_fit(fitter, person)
        assert (one.fit["checked"], checked.fit["checked"]) == (False, True)
        assert (one.offsets == checked.offsets).all()
        assert one.fit["perplexity"] != checked.fit["perplexity"]
    assert passes(tiny, lambda: fitter.fit(people[0])) > FOLDS


def test_what_no_subject_changes_is_computed_once(
    tiny: Any, inventory: Inventory, tmp_path: Path
) -> None:
    settings, made = Settings(heads=5, check=False), []

    def open_it() -> None:
        kept = ModelCache.of(tiny, Cache(tmp_path))
        made.append(open_fitter(tiny, inventory, EVERY, settings, kept))

    assert passes(tiny, open_it) > 0
    assert passes(tiny, open_it) == 0
    one, other = (one_fit(fitter, subject(inventory, 1)) for fitter in made)
    assert one.to_bytes() == other.to_bytes()


def test_without_a_cache_nothing_is_kept(
    tiny: Any, inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    PalignFitter(tiny, inventory, EVERY, Settings(heads=2, check=False))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_gives_nan_is_said_to_be_broken(
    method: str, tiny: Any, inventory: Inventory
) -> None:
    import torch

    broken = copy.deepcopy(tiny.model)
    with torch.no_grad():
        broken.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    model = wrap(broken, tiny.tokenizer, base_model="broken")
    with pytest.raises(FitError, match=r"broken: gives NaN.*--dtype float32"):
        open_fitter(model, inventory, EVERY, Settings(method, heads=4))


def test_held_out_answers_never_reach_their_direction(
    fitter: PalignFitter, inventory: Inventory
) -> None:
    """The items are test_directions's: a fold's directions is made without their texts and keys as well."""
    ann = subject(inventory, 4)
    assert (np.sum([~blind.rows for blind in fitter.directions.blind], axis=0) == 1).all()
    for fold, blind in enumerate(fitter.directions.blind):
        held = fitter.directions.folds == fold
        assert not (blind.rows & held).any()
        other = Subject("ann", np.where(held, 6 - ann.agreement, ann.agreement))
        assert (blind.weights(ann.agreement) == blind.weights(other.agreement)).all()


def test_the_figures_are_measured_under_the_direction_of_the_other_folds(
    tiny: Any, inventory: Inventory, fitter: PalignFitter
) -> None:
    ann = subject(inventory, 5, missing=7)
    answered = np.isfinite(ann.agreement)
    measured: list[np.ndarray[Any, Any]] = []

    class Ruler(Baseline):
        def change(self, heads: Any, alpha: float, rows: Any) -> Any:
            measured.append(rows)
            fold = int(fitter.directions.folds[rows][0])
            blind = fitter.directions.blind[fold]
            wanted, _ = blind.steering(blind.weights(ann.agreement))
            assert (heads.offsets == wanted.offsets).all()
            return super().change(heads, alpha, rows)

    spied = copy.copy(fitter)
    assert fitter.baseline is not None
    spied.baseline = Ruler(**vars(fitter.baseline))
    assert one_fit(spied, ann).to_bytes() == one_fit(fitter, ann).to_bytes()
    assert (np.sum(measured, axis=0) == answered).all()


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
    tiny: Any, inventory: Inventory, kept: ModelCache
) -> None:
    """Where usual answers are 3.5 and 2.5 by keying, half a point above both says nothing."""
    halves = dataclasses.replace(inventory)
    vars(halves)["usual"] = np.where(inventory.signs > 0, 3.5, 2.5)
    sheet = np.where(inventory.of_trait[TRAITS.index("C")], halves.usual + 0.5, np.nan)
    with pytest.raises(InputError, match="nothing to steer towards"):
        next(fit_personas(tiny, halves, [Subject("x", sheet)], Settings(heads=5), kept))


@pytest.mark.parametrize("method", METHODS)
def test_very_few_answers_still_make_a_persona(
    method: str, tiny: Any, inventory: Inventory, kept: ModelCache
) -> None:
    sheet = np.full(120, np.nan)
    sheet[:10] = [5, 1, 4, 2, 5, 1, 2, 4, 5, 1]
    (one,) = fit_personas(
        tiny, inventory, [Subject("x", sheet)], Settings(method, heads=5, alpha=1), kept
    )
    assert one.fit["answered"] == 10 and one.offsets.any()


def test_a_trait_without_answers_is_said_to_be_taken_as_average(
    fitter: PalignFitter, inventory: Inventory
) -> None:
    ann = subject(inventory, 7)
    ann.agreement[[item.trait == "O" for item in inventory.items]] = np.nan
    assert "no answers on O: taken as average there" in one_fit(fitter, ann).fit["warnings"]


def test_an_alpha_of_the_user_is_kept_whatever_it_costs(
    fitter: PalignFitter, inventory: Inventory
) -> None:
    mine = copy.copy(fitter)
    mine.settings = Settings(heads=5, alpha=90.0)
    one = one_fit(mine, subject(inventory, 7))
    assert (one.alpha, one.fit["alpha_from"]) == (90.0, "the user")
    assert one.fit["perplexity"] > MAX_RATIO * one.fit["perplexity_plain"]
    assert any("may lose fluency" in warning for warning in one.fit["warnings"])


def test_settings_list_all_their_problems() -> None:
    with pytest.raises(InputError) as error:
        Settings(method="x", heads=0, alpha=-1, seed=-1)
    assert str(error.value).count("wanted") == 4


def test_making_everything_likelier_is_no_effect() -> None:
    wanted = np.array([2.0, -1, 0, 1])
    assert effect(np.full(4, 0.7), wanted) == pytest.approx(0)
    assert effect(0.3 * np.sign(wanted - wanted.mean()), wanted) == pytest.approx(0.3)


def test_on_the_demo_model_outgoing_and_withdrawn_people_part(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alice and bob of examples/: both hold out, each persona is its own person's rather than the other's, their
    statements move apart, and language holds. No promise is made that neither is weak."""
    from palign_fit.inputs.answers import read_answers
    from palign_fit.inputs.inventory import built_in
    from palign_fit.model.likelihood import statement_loglik
    from palign_fit.model.prompts import OPENINGS, chat_prefix, continuation
    from palign_fit.model.steer import steered

    # A third of the shipped statements is enough to see it, and keeps the test short.
    third = sentences.statements()[::6]
    monkeypatch.setattr(sentences, "statements", lambda: third)
    # As are the outgoing and the withdrawn one of the ten typical people by whom the model's bounds are found.
    typical = Basis.typical
    monkeypatch.setattr(
        Basis,
        "typical",
        lambda self: [one for one in typical(self) if TRAITS[one.trait] == "E"],
    )
    model = open_model(str(demo_model), device="cpu")
    answers = ROOT / "examples" / "answers.json"
    people = read_answers(answers, built_in())
    fitter = PalignFitter(model, built_in(), people.used, Settings())
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
    lean, changes = {}, []
    for person in people:
        one = one_fit(fitter, person)
        assert one.fit["alignment"] > 0.2
        assert one.fit["weak"] is (one.fit["rank"] > RARE) and one.fit["rank"] < 0.5
        # Every item under directions that do not know it.
        change = np.full(len(person.agreement), np.nan)
        for rows, blind in fitter.directions.held_out(person.agreement):
            own = blind.weights(person.agreement)
            change[rows] = blind.change(own, blind.size(own))[rows]
        changes.append(change)
        assert one.fit["perplexity"] <= MAX_RATIO * one.fit["perplexity_plain"]
        with steered(model, one):
            change = statement_loglik(model, prefix, tokens) - plain
        lean[one.name] = change[:4].mean() - change[4:].mean()
        # The estimate that runs without a check rest on.
        weights = fitter.directions.whole.weights(person.agreement)
        steering, scale = fitter.directions.whole.steering(weights)
        half = one.alpha / 2
        predicted = fitter.budget.predicted(
            half, fitter.directions.whole.disturbance(weights, scale)
        )
        assert predicted == pytest.approx(fitter.budget.chats.under(steering, half), rel=0.05)
    assert lean["alice"] > 0.1 and lean["bob"] < -0.1, lean
    both = np.isfinite(changes).all(0)
    answers_of = [deviations(person.agreement, built_in())[both] for person in people]
    right, swapped = (
        sum(
            correlation(change[both], wanted) for change, wanted in zip(changes, order, strict=True)
        )
        for order in (answers_of, answers_of[::-1])
    )
    assert right > swapped + 0.2, (right, swapped)
