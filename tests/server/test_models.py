"""``GET /v1/models`` names everything once."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from tests.server.calls import Models, open_front_end
from vllm_palign.server import models


class Card(BaseModel):
    id: str
    created: int = 0
    owned_by: str = "vllm"
    parent: str | None = None


class Cards(BaseModel):
    data: list[Card]


class Listing(Models):
    async def show_available_models(self) -> Cards:
        return Cards(data=[Card(id="base"), Card(id="base@alice")])


def test_an_adapter_named_like_a_persona_is_listed_once() -> None:
    state = SimpleNamespace(
        palign=open_front_end(alice=0, bob=1), openai_serving_models=Listing("base")
    )
    state.openai_serving_models.lora_requests["base@alice"] = object()
    request: Any = SimpleNamespace(app=SimpleNamespace(state=state))
    reply = asyncio.run(models.show_available_models(request))
    listed = [(card["id"], card["owned_by"]) for card in json.loads(bytes(reply.body))["data"]]
    assert listed == [("base", "vllm"), ("base@alice", "vllm"), ("base@bob", "palign")]
