"""What GET and PUT of a persona answer, and where its ``fit`` is written."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.personas import random_persona
from tests.server.calls import SHAPE
from vllm_palign.persona import Persona
from vllm_palign.server import personas
from vllm_palign.tenants.tenant import Tenant

FITS = [
    {},
    {"alpha": 1, "fit": {"fit": "}"}, "ü": '"\\ \N{GRINNING FACE}\u2028', "z": [1.5, None, True]},
    {"items": [{"id": f"i{number}", "text": '"', "r": 0.1} for number in range(1000)]},
]


def registered(fit: dict[str, object]) -> tuple[Any, Persona, bytes]:
    """A record of the operator's persona, the persona, and its file."""
    persona = dataclasses.replace(
        random_persona(0, **SHAPE, name="x"), fit=fit, description='fit":{}'
    )
    data = persona.to_bytes()
    record = SimpleNamespace(
        name="alice", created=7, digest=persona.digest, size=len(data), tenant="", base_model="base", **SHAPE,
        metadata={"name": "x", "description": "", "method": "pas", "alpha": persona.alpha, "steered_heads": 5},
    )  # fmt: skip
    return record, Persona.from_bytes(data), data


@pytest.mark.parametrize("fit", FITS)
def test_the_reply_holds_the_fit_of_the_file_as_it_is_written_there(fit: dict[str, object]) -> None:
    reply = personas._whole(*registered(fit), Tenant())
    whole = personas.PersonaObject.model_validate_json(reply)
    assert whole.fit == fit
    assert whole.description == 'fit":{}'
    assert whole.id == "alice"
    assert list(json.loads(reply)) == list(personas.PersonaObject.model_fields)
    text = json.dumps(fit, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert text.encode() in reply


@pytest.mark.parametrize("others", [{}, {"a": 1}, {"z": {"sliders": 2}}, {"a": 1, "z": 2}])
@pytest.mark.parametrize("tenant", [Tenant(), Tenant(may_manage=False), Tenant("acme")])
def test_trait_values_are_for_whoever_may_have_the_file(
    others: dict[str, object], tenant: Tenant
) -> None:
    fit = {**others, "effects": {"E": 0.2}, "sliders": {"E": 1}}
    reply = personas._whole(*registered(fit), tenant)
    owner = tenant == Tenant()
    assert json.loads(reply)["fit"] == (fit if owner else others)
