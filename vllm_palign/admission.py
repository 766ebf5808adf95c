"""Where every request of every entry point passes: persona to content, content to KV identity."""

from __future__ import annotations

from typing import Any

from vllm_palign.config import PalignConfig
from vllm_palign.errors import PalignError, PalignStartupError
from vllm_palign.persona import load
from vllm_palign.shape import ModelShape
from vllm_palign.stamp import salted
from vllm_palign.store import PersonaStore
from vllm_palign.wire import XARG, Seal, check_salt, open_named, reserved


class FrontEnd:
    """What one front-end process needs to admit requests. Hangs on its ``VllmConfig``; engine and worker
    processes get a copy of that config without it, because content travels inside the requests."""

    def __init__(self, store: PersonaStore, *, over_http: bool) -> None:
        self.store = store
        self.seal = Seal()
        self.over_http = over_http
        """An HTTP server admits sealed selections only, so that no endpoint lets a client write the
        reserved key."""
        self.has_middleware = False
        """Set when the middleware is in place. vLLM logs and swallows a plugin that fails to load;
        without this the server would go on and answer plainly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())

    def admit(self, request: Any) -> None:
        """Stamp one ``EngineCoreRequest`` and give it its KV identity. Plain requests stay as they are.

        Raises PalignError; vLLM turns it into a 400 before anything has run.
        """
        if self.over_http and not self.has_middleware:
            raise PalignStartupError(
                "this server runs without palign's middleware, so personas would be ignored; "
                "look for 'Failed to load plugin palign' in its log"
            )
        check_salt(request.cache_salt)
        params = request.sampling_params
        if params is None or not params.extra_args or XARG not in params.extra_args:
            return
        # A copy: callers reuse their dict, and vLLM's clone of SamplingParams may be shallow.
        extra = dict(params.extra_args)
        asked = extra.pop(XARG)
        resolved = self.seal.open(asked)
        if resolved is None:
            if self.over_http:
                raise reserved("vllm_xargs")
            resolved = self.store.resolve(open_named(asked))
        stamp = self.store.stamp(resolved)
        if stamp is not None:
            extra[XARG] = stamp.pack()
            request.cache_salt = salted(request.cache_salt, stamp.key)
        params.extra_args = extra or None


def front_end(config: PalignConfig, model_config: Any, *, over_http: bool) -> FrontEnd:
    """Load and check every configured persona. Raises PalignStartupError with all problems."""
    from vllm.logger import init_logger

    logger = init_logger("vllm.palign")
    store = PersonaStore(ModelShape.of(model_config), config.max_strength)
    problems = []
    for name, path in config.personas.items():
        try:
            persona = load(path)
            store.add(name, persona)
        except PalignError as error:
            problems.append(f"{name}={path}: {error.message}")
            continue
        served = str(model_config.model).rstrip("/").rpartition("/")[2]
        if persona.base_model.rstrip("/").rpartition("/")[2] != served:
            logger.warning(
                "palign: persona %r was fitted on %r, served is %r of the same shape; "
                "it will steer, but perhaps not as intended",
                name,
                persona.base_model,
                model_config.model,
            )
    if problems:
        raise PalignStartupError("personas cannot be served: " + "; ".join(problems))
    logger.info("palign: serving %d personas", len(store.names))
    return FrontEnd(store, over_http=over_http)
