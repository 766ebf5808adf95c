"""What the suite shows about vLLM's features, model families and refusals: the rows of docs/compatibility.md.

A test marked ``shows(table, row, ...)`` is the evidence of that row. What it measured goes through the
fixture ``measured``, what vLLM or palign said into the property ``said``. With ``--shown=FILE`` the rows
are written as JSON; with ``--collect-only`` too, then without results.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TABLES = ("features", "families", "refusals", "not on CPU")

Measured = Callable[[dict[str, float]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shown", type=Path, metavar="FILE", help="write what the suite shows (JSON)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "shows(table, row, runner='v1', model='llama', note=''): evidence of a row of docs/compatibility.md",
    )
    # Workers of pytest-xdist report to the process that started them.
    if config.getoption("--shown") is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Shown(config.getoption("--shown")), "palign-shown")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("shows"):
            item.user_properties.append(("shows", _row(item, marker)))


def _row(item: pytest.Item, marker: pytest.Mark) -> dict[str, str]:
    table, row = marker.args
    if table not in TABLES:
        raise pytest.UsageError(f"{item.nodeid}: table {table!r}, wanted one of {TABLES}")
    parameters = getattr(item, "callspec", None)
    given = (
        {"runner": parameters.params["runner"]}
        if parameters and "runner" in parameters.params
        else {}
    )
    fields = {"runner": "v1", "model": "llama", "note": ""} | given | marker.kwargs
    # Not the node id: pytest-xdist appends the group to it.
    test = f"{item.nodeid.partition('::')[0]}::{item.name}"
    return {"table": table, "row": row, **fields, "test": test}


class Shown:
    """Collects the rows in the process that sees every report."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            for item in session.items:
                self._add(item.user_properties)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._add(report.user_properties, outcome=report.outcome)

    def pytest_sessionfinish(self) -> None:
        self.rows.sort(
            key=lambda row: (TABLES.index(row["table"]), row["row"], row["runner"], row["test"])
        )
        self.file.write_text(json.dumps(self.rows, indent=1, sort_keys=True) + "\n")

    def _add(self, properties: list[tuple[str, Any]], **more: str) -> None:
        found = {key: value for key, value in properties if key in ("measured", "said")}
        self.rows += [value | found | more for key, value in properties if key == "shows"]


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Note largest |log-probability differences| by name; ``effect`` is how far steering moved them."""

    def note(errors: dict[str, float]) -> None:
        record_property("measured", {name: float(f"{error:.2g}") for name, error in errors.items()})

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the tests measured against their bounds."""
    noted = [
        (report.nodeid.rpartition("::")[2], value)
        for report in terminalreporter.getreports("passed")
        for key, value in report.user_properties
        if key == "measured" and report.when == "call"
    ]
    if noted:
        terminalreporter.section("largest |log-probability difference|")
        for test, errors in noted:
            values = " ".join(f"{name}={error:.1e}" for name, error in errors.items())
            terminalreporter.write_line(f"{values}  {test}")
