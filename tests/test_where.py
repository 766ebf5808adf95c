"""Where a module is tested: in a file of its name, or where this table says."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT

ELSEWHERE = {
    # Serving.
    "vllm_palign/admission": {
        "directions": "tests/plugin/test_plugin.py",
        "handoff": "tests/test_selection.py",
        "outage": "tests/admission/test_resolver.py",
    },
    "vllm_palign/cli": {
        "extras main": "tests/test_packaging.py",
        "play": "tests/play/test_page.py",
        "tenants": "tests/tenants/test_file.py",
    },
    "vllm_palign/compat": {"hooks": "tests/engine/test_drift.py"},
    "vllm_palign/config": {
        "config": "tests/plugin/test_plugin.py",
        "sources": "tests/config/test_hub.py",
        "store_url": "tests/registry/test_registry.py",
    },
    "vllm_palign": {
        "container": "tests/test_persona.py",
        "effect shape": "tests/test_selection.py",
        "endpoint": "tests/engine/test_drift.py",
        "errors": "tests/http/test_server.py",
        "switch": "tests/plugin/test_plugin.py",
    },
    "vllm_palign/directions": {
        "basis budget inventory numbers record scores sheet sliders traits": "tests/directions/test_directions.py"
    },
    "vllm_palign/plugin": {"command_line wraps": "tests/plugin/test_plugin.py"},
    "vllm_palign/registry": {
        "configured database migrate patience schema": "tests/registry/test_registry.py"
    },
    "vllm_palign/server": {
        "allowed": "tests/http/tenants/test_security.py",
        "asgi": "tests/server/test_middleware.py",
        "body forms served": "tests/server/test_middleware.py",
        "gauges": "tests/http/tenants/test_metrics.py",
        "questionnaire routes": "tests/server/test_enrolment.py",
    },
    "vllm_palign/tenants": {
        "authenticator caller strict_yaml tenant": "tests/tenants/test_file.py"
    },
    "vllm_palign/verify": {
        "checks engine op shapes subjects timing": "tests/verify/test_verify.py"
    },
    "vllm_palign/worker": {
        "layer": "tests/engine/test_families.py",
        "ops places": "tests/worker/test_bank.py",
        "runner": "tests/engine/test_v2_runner.py",
    },
    # Fitting.
    "tools/palign_fit": {
        "arrays": "tests/fit/methods/test_letters.py",
        "cli errors": "tests/fit/commands/test_cli.py",
    },
    "tools/palign_fit/commands": {
        "common inspect one_persona options run tally unpack": "tests/fit/commands/test_cli.py",
        "inventory": "tests/fit/commands/test_cli.py",
        "report": "tests/fit/reporting/test_report.py",
        "measuring": "tests/fit/evaluation/test_evaluate.py",
    },
    "tools/palign_fit/evaluation": {
        "client judging": "tests/fit/evaluation/test_judge.py",
        "conditions evaluating figures fitting intervals measures readings split tables tasks texts": (
            "tests/fit/evaluation/test_evaluate.py"
        ),
        "server": "tests/http/test_evaluate_server.py",
    },
    "tools/palign_fit/evaluation/speech": {
        "damage plan": "tests/fit/evaluation/speech/test_measuring.py",
    },
    "tools/palign_fit/inputs": {
        "files jsons": "tests/fit/inputs/test_records.py",
        "papi scale": "tests/fit/inputs/test_answers.py",
        "sliders traits": "tests/fit/methods/test_traits.py",
    },
    "tools/palign_fit/methods": {
        "baseline settings": "tests/fit/test_fit.py",
        "discriminant heads": "tests/fit/methods/test_directions.py",
    },
    "tools/palign_fit/methods/pairs": {"data fitter": "tests/fit/methods/test_pairs.py"},
    "tools/palign_fit/methods/palign": {"fitter": "tests/fit/test_fit.py"},
    "tools/palign_fit/methods/pas_reference": {"fitter": "tests/fit/methods/test_pas_reference.py"},
    "tools/palign_fit/model": {
        "checkpoint": "tests/fit/model/test_cache.py",
        "continuations": "tests/fit/model/test_gradients.py",
        "likelihood token_tree": "tests/fit/evaluation/test_evaluate.py",
        "rows": "tests/fit/model/test_speaking.py",
    },
    "tools/palign_fit/output": {"folder shards": "tests/fit/output/test_population.py"},
    "tools/palign_fit/reporting": {
        "card plot": "tests/fit/commands/test_cli.py",
        "side_by_side": "tests/fit/commands/test_try_persona.py",
        "speech_plot": "tests/fit/evaluation/speech/test_measuring.py",
        "charts evaluated layers page profile record samples sources": (
            "tests/fit/reporting/test_report.py"
        ),
    },
}
"""Folder -> modules in it -> the file that tests them."""

LISTED = {
    f"{folder}/{module}.py": test
    for folder, tested in ELSEWHERE.items()
    for modules, test in tested.items()
    for module in modules.split()
}

MODULES = [
    path.relative_to(ROOT).as_posix()
    for package in ("vllm_palign", "tools/palign_fit")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.stem.startswith("__") and "migrations" not in path.parts
]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_tested_where_its_name_or_the_table_says(module: str) -> None:
    name = f"test_{module.rpartition('/')[2]}"
    own = list((ROOT / "tests").rglob(name))
    if module in LISTED:
        test = ROOT / LISTED[module]
        assert test.is_file(), f"{module}: {LISTED[module]} is gone"
    else:
        assert own, (
            f"{module}: no {name} below tests/, and the table does not say where it is tested"
        )


def test_the_table_lists_no_module_that_is_gone() -> None:
    assert set(LISTED) <= set(MODULES)
