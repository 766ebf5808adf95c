"""``GET /v1/models`` with personas, so that clients that know nothing of them can pick one as a model."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.errors import RegistryUnavailable
from vllm_palign.registry import Record
from vllm_palign.server import served
from vllm_palign.tenants import caller

MAX_LISTED = 100

router = APIRouter()


@router.get("/v1/models")
async def show_available_models(request: Request) -> JSONResponse:
    """vLLM's list, then ``MODEL@persona`` for the first 100 personas, by name, that the caller may use
    and that fit the model. Without an answer from the registry, vLLM's list alone."""
    state = request.app.state
    listed = await state.openai_serving_models.show_available_models()
    base = listed.data[0]
    served.names(state)  # warns of adapters that are named like a persona
    taken = {card.id for card in listed.data}
    cards = [_card(base, record) for record in await _usable(state.palign)]
    cards = [card for card in cards if card.id not in taken]
    return JSONResponse(listed.model_copy(update={"data": [*listed.data, *cards]}).model_dump())


async def _usable(front_end: FrontEnd) -> tuple[Record, ...]:
    tenant = caller.current(tenants=front_end.tenants is not None)
    if not tenant.may_use:
        return ()
    resolver = front_end.resolver
    if resolver.outage:
        return ()
    try:
        page = await front_end.manage(
            lambda: resolver.registry.page(tenant, limit=MAX_LISTED, shape=resolver.shape),
            tenant,
            queue="models",
        )
    except RegistryUnavailable as error:
        logging.getLogger("vllm.palign").warning(
            "palign: /v1/models lists no personas: %s", error.message
        )
        return ()
    return page.records


def _card(base: Any, record: Record) -> Any:
    """The served model's own ``ModelCard`` under another name: its limits are the persona's too."""
    return base.model_copy(
        update={
            "id": f"{base.id}@{record.name}",
            "created": record.created,
            "owned_by": "palign",
            "parent": base.id,
        }
    )
