"""vLLM's endpoint plugin: puts our routes and the middleware into the API server and hands it the store."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from vllm_palign.admission.forgetting import Forgetting
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.compat.hooks import absent, require
from vllm_palign.compat.versions import include_instead
from vllm_palign.errors import PalignStartupError
from vllm_palign.server import audit, models, personas, questionnaire, served
from vllm_palign.server.gate import Gate
from vllm_palign.server.gauges import ScrapedGauges
from vllm_palign.server.middleware import PersonaMiddleware
from vllm_palign.tenants.tenant import Tenant

_READS = (
    "openai_serving_models.base_model_paths",
    "openai_serving_models.lora_requests",
    "openai_serving_models.lora_resolvers",
    "openai_serving_models.resolve_lora",
    "openai_serving_models.show_available_models",
)
"""What the middleware and ``models`` read of the API server's state."""


class PalignEndpoint:
    """Entry point of the group ``vllm.endpoint_plugins``; loaded when ``VLLM_PLUGINS`` names palign."""

    name = "palign"
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Inside vLLM's own authentication, which is added after plugins and so runs before them."""
        app.include_router(personas.router)
        app.include_router(questionnaire.router)
        include_instead(app, models.router)  # vLLM has a GET /v1/models too
        app.add_middleware(PersonaMiddleware)
        app.add_middleware(Gate)  # added later, so it runs before

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Raises PalignStartupError when this server has no engine configured with personas, when one of
        its engines does not steer, or when its state is not as we know it."""
        front_end = FrontEnd.of(getattr(engine_client, "vllm_config", None))
        if front_end is None:
            raise PalignStartupError(
                "palign needs the API server's own engine config; a render-only server cannot steer"
            )
        require(absent(state, _READS))
        await front_end.ask_engines(engine_client)
        front_end.has_middleware = True
        audit.start()
        if front_end.tenants is not None:
            front_end.tenants.follow()
        Forgetting(front_end.resolver).follow()
        served.names(state)
        state.palign = front_end
        state.palign_gauges = _gauges(engine_client, front_end)


def _gauges(engine_client: Any, front_end: FrontEnd) -> ScrapedGauges:
    async def slots() -> dict[str, int]:
        first, *_ = await engine_client.collective_rpc("palign_slots")
        return dict(first)

    async def registered() -> int:
        counts = front_end.resolver.registry.counts
        return sum((await front_end.manage(counts, Tenant(), queue="gauges")).values())

    return ScrapedGauges(slots, registered)
