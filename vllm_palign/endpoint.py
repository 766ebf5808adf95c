"""vLLM's endpoint plugin: puts our routes and the middleware into the API server and hands it the store."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from vllm_palign import management, models
from vllm_palign.errors import PalignStartupError
from vllm_palign.middleware import PersonaMiddleware


class PalignEndpoint:
    """Entry point of the group ``vllm.endpoint_plugins``; loaded when ``VLLM_PLUGINS`` names palign."""

    name = "palign"
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Inside vLLM's own authentication, which is added after plugins and so runs before them."""
        app.include_router(management.router)
        app.include_router(models.router)  # vLLM lets it replace its own /v1/models
        app.add_middleware(PersonaMiddleware)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Raises PalignStartupError when this server has no engine configured with personas."""
        front_end = getattr(getattr(engine_client, "vllm_config", None), "palign", None)
        if front_end is None:
            raise PalignStartupError(
                "palign needs the API server's own engine config; a render-only server cannot steer"
            )
        front_end.has_middleware = True
        state.palign = front_end
