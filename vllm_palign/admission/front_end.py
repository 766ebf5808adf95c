"""Where every request of every entry point passes: persona to content, content to KV identity."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from vllm_palign.admission import armed, conversations
from vllm_palign.admission.directions import open_directions
from vllm_palign.admission.handoff import PLAIN, Granted, Handoff
from vllm_palign.admission.resolver import Chosen, Resolver
from vllm_palign.admission.turns import Turns
from vllm_palign.config.config import PalignConfig
from vllm_palign.config.store_url import private_store
from vllm_palign.directions import Directions
from vllm_palign.effect import is_packed, salted
from vllm_palign.errors import (
    PalignStartupError,
    PersonaInvalid,
    RegistryFull,
    RegistryUnavailable,
)
from vllm_palign.registry import Registry
from vllm_palign.registry.configured import import_personas
from vllm_palign.selection import (
    REQUEST_KEY,
    Selection,
    asks,
    check_salt,
    fold,
    open_named,
    reserved,
)
from vllm_palign.shape import ModelShape
from vllm_palign.tenants import caller
from vllm_palign.tenants.authenticator import Authenticator
from vllm_palign.tenants.file import TenantsError, TenantsFile
from vllm_palign.tenants.tenant import OPERATOR, Tenant

RESOLVERS = 6
"""Threads of one front-end process that look personas up for requests."""
MANAGERS = 2
"""Threads for everything else. Apart, so that uploads that wait for their turn to write, or lists in an
outage, hold no request up."""
CONNECTIONS = RESOLVERS + MANAGERS
"""Database connections of one front-end process: a thread uses one at a time."""

T = TypeVar("T")

_logger = logging.getLogger("vllm.palign")

_attached: dict[int, FrontEnd] = {}


class FrontEnd:
    """What one front-end process needs to admit requests, found by the ``VllmConfig`` it was made for.
    Engine and worker processes have copies of that config and no front end, because content travels
    inside the requests."""

    def __init__(
        self, resolver: Resolver, model: str, *, over_http: bool, keyed_by_salt: bool = False
    ) -> None:
        self.resolver = resolver
        self.keyed_by_salt = keyed_by_salt
        """Whether KV leaves the engine under the salt and the tokens alone, without vLLM's block hashes."""
        self.model = model
        self.handoff = Handoff()
        self.over_http = over_http
        """An HTTP server admits handed-over selections only, so that no endpoint lets a client write the
        reserved key."""
        self.has_middleware = False
        """Set when the middleware is in place. vLLM logs and swallows a plugin that fails to load;
        without this the server would go on and answer plainly."""
        self.unarmed: PalignStartupError | None = None
        """Set when an engine was found that does not steer; no steered request is let in from then on."""
        self.tenants: Authenticator | None = None
        """Set when callers are told apart by their keys."""
        self.directions: Directions | None = None
        """Set when personas can be made of answers."""
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "palign-resolve")
        self._managers = ThreadPoolExecutor(MANAGERS, "palign-manage")
        self._turns = Turns(MANAGERS)

    def attach(self, vllm_config: Any) -> None:
        """Beside the config, not on it: vLLM copies configs field by field and knows no field of ours."""
        _attached[id(vllm_config)] = self
        weakref.finalize(vllm_config, _attached.pop, id(vllm_config))

    @staticmethod
    def of(vllm_config: Any) -> FrontEnd | None:
        """The front end of exactly this config object."""
        return _attached.get(id(vllm_config))

    def check_engines(self, answers: Sequence[Any], layers: frozenset[int]) -> None:
        """``answers`` of all engines to ``armed.METHOD``, errors included. Raises PalignStartupError unless every
        one of them steers all ``layers``."""
        try:
            armed.check_engines(answers, layers)
        except PalignStartupError as error:
            self.unarmed = error
            raise

    async def ask_engines(self, engine_client: Any) -> None:
        """Let every rank of every engine that ``engine_client`` (AsyncLLM) sends requests to say what it is
        armed with. Raises what ``check_engines`` raises."""
        client = engine_client.engine_core
        # One by one: collective_rpc gives the first engine's answer for all.
        calls = [
            client._call_utility_async(
                "collective_rpc", armed.METHOD, None, (), None, engine=engine
            )
            for engine in client.core_engines
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        self.check_engines(answers, self.resolver.shape.attention_layers)

    async def stop_unless_armed(self, engine_client: Any) -> None:
        """The same while the server runs: it stops, as if told to, when there is an engine that does not steer."""
        try:
            await self.ask_engines(engine_client)
        except PalignStartupError as error:
            _logger.error("palign: %s", error.message)
            if self.over_http:
                os.kill(os.getpid(), signal.SIGTERM)
            raise

    async def manage(self, work: Callable[[], T], tenant: Tenant, *, queue: str = "") -> T:
        """Run what may block beside the event loop, for ``tenant``, of whom only as much waits for a thread as there
        are threads, in every ``queue``. Raises RegistryUnavailable when it takes too long, and then it may be done all
        the same, or when what is before it does."""
        async with AsyncExitStack() as waiting:
            try:
                async with asyncio.timeout(self._patience):
                    await waiting.enter_async_context(self._turns.of((tenant.name, queue)))
            except TimeoutError:
                raise RegistryUnavailable(
                    "too many of your own calls to the persona registry are waiting; send fewer at once, and this one "
                    "again"
                ) from None
            return await self._in_time(_off_loop(self._managers, work))

    async def grant(self, selection: Selection, tenant: Tenant) -> tuple[Chosen, str]:
        """Resolve ``selection`` and hand it to admission. Raises what ``Resolver.resolve`` raises, and
        PalignStartupError when an engine does not steer."""
        if self.unarmed is not None:
            raise self.unarmed
        chosen = await self._in_time(
            _off_loop(self._resolvers, lambda: self.resolver.resolve(selection, tenant))
        )
        return chosen, self.handoff.put(_granted(chosen, tenant))

    @property
    def _patience(self) -> float:
        # A connection found dead and one tried in its place wait ``timeout`` seconds each.
        return 3 * self.resolver.registry.timeout

    async def _in_time(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._patience):
                return await answer
        except TimeoutError:
            raise RegistryUnavailable("the persona registry takes too long; try again") from None

    def admit(self, request: Any, prompt: Any) -> None:
        """Give one ``EngineCoreRequest``, made of ``prompt``, its effect and its KV identity. Plain requests stay
        as they are, but for tenants whose KV is kept apart.

        A request that is steered from some token on has the salt of a plain one, so that it meets the plain
        blocks before that token; ``effect.block_identity`` tells the others apart.

        Raises PalignError; vLLM turns it into a 400 before anything has run.
        """
        if self.over_http and not self.has_middleware:
            raise PalignStartupError(
                "this server runs without palign's middleware, so personas would be ignored; "
                "look for 'Failed to load plugin palign' in its log"
            )
        check_salt(request.cache_salt)
        tenant = caller.current(tenants=self.tenants is not None)
        granted = self._granted(request.sampling_params, tenant)
        key, kv_scope = "", tenant.plain_kv_scope
        if granted.effect is not None:
            if self.unarmed is not None:
                raise self.unarmed
            start = 0 if granted.scope == "all" else conversations.first_answer(request, prompt)
            packed = granted.effect.pack(
                scope=granted.scope, start=start, kv_scope=granted.kv_scope
            )
            request.sampling_params.extra_args[REQUEST_KEY] = packed
            if start == 0 or self.keyed_by_salt:
                key, kv_scope = f"{granted.effect.key}:{start}", granted.kv_scope
        if key or kv_scope:
            request.cache_salt = salted(request.cache_salt, key, kv_scope)

    def _granted(self, params: Any, tenant: Tenant) -> Granted:
        """What the request was granted or, offline, is granted now; takes the wish out of ``params``."""
        if params is None or not params.extra_args:
            return PLAIN
        for name in params.extra_args:
            if name != REQUEST_KEY and asks(fold(str(name))):
                raise PersonaInvalid(
                    f'extra_args[{name!r}]: would not be applied; wanted extra_args=persona_args("alice", '
                    "strength=1.5)",
                    param=f"extra_args.{name}",
                )
        if REQUEST_KEY not in params.extra_args:
            return PLAIN
        # A copy: callers reuse their dict, and vLLM's clone of SamplingParams may be shallow.
        params.extra_args = dict(params.extra_args)
        asked = params.extra_args.pop(REQUEST_KEY)
        granted = self.handoff.take(asked)
        if granted is None:
            if self.over_http:
                raise reserved("vllm_xargs")
            granted = _granted(self.resolver.resolve(open_named(asked), tenant), tenant)
        if granted.effect is None:
            params.extra_args = params.extra_args or None
        return granted


def refuse_unadmitted(params: Any) -> None:
    """Raises PersonaInvalid if the sampling parameters of a request on its way to the engine name a persona
    that was not admitted: a ready-made EngineCoreRequest never passed ``admit``."""
    asked = (params.extra_args or {}).get(REQUEST_KEY) if params is not None else None
    if asked is not None and not is_packed(asked):
        raise PersonaInvalid(
            "this EngineCoreRequest names a persona and was not made by vLLM's InputProcessor.process_inputs, "
            "which admits it; give the engine the prompt and the SamplingParams instead"
        )


def _off_loop(threads: ThreadPoolExecutor, work: Callable[[], T]) -> Awaitable[T]:
    return asyncio.get_running_loop().run_in_executor(threads, work)


def _granted(chosen: Chosen, tenant: Tenant) -> Granted:
    return Granted(chosen.effect, chosen.scope, tenant.kv_scope(chosen.owners))


def open_front_end(
    config: PalignConfig, model_config: Any, *, over_http: bool, keyed_by_salt: bool
) -> FrontEnd:
    """Open the registry ``config.store`` and import the configured personas into it.

    Raises PalignStartupError with all problems.
    """
    registry = Registry(
        config.store or private_store(), timeout=config.store_timeout, connections=CONNECTIONS
    )
    shape = ModelShape.of(model_config)
    try:
        registry.migrate()
        import_personas(registry, shape, config.personas, str(model_config.model))
        owners = registry.counts() if config.tenants is not None else {}
    except (RegistryUnavailable, RegistryFull) as error:
        raise PalignStartupError(f"--palign-store: {error.message}: {error.__cause__}") from error
    finally:
        # vLLM may fork its engine from this process: no connection may be open then.
        registry.close()
    resolver = Resolver(
        registry,
        shape,
        max_strength=config.max_strength,
        cache_bytes=config.cache_mib << 20,
        scope=config.scope,
    )
    front_end = FrontEnd(
        resolver, str(model_config.model), over_http=over_http, keyed_by_salt=keyed_by_salt
    )
    if config.directions is not None:
        if not over_http:
            raise PalignStartupError(
                "directions make personas of answers that are PUT to a server, which this is not; make them with "
                "palign-fit run --directions and give the files as personas"
            )
        front_end.directions = open_directions(config.directions, shape, front_end.model)
    if config.tenants is not None:
        front_end.tenants = _open_authenticator(config.tenants, over_http=over_http)
        _warn_of_leftovers(owners, config.tenants)
    return front_end


def _warn_of_leftovers(owners: Mapping[str, int], tenants: str) -> None:
    """Personas of who is no tenant any more: whoever is given the name later would have them."""
    known = {OPERATOR, *TenantsFile.read(tenants).tenants}
    left = {name: count for name, count in sorted(owners.items()) if name not in known}
    if left:
        _logger.warning(
            "palign: the registry holds personas of %d that are not in %s: %s; palign tenants purge NAME deletes them",
            len(left),
            tenants,
            ", ".join(f"{name} ({count})" for name, count in list(left.items())[:10]),
        )


def _open_authenticator(path: str, *, over_http: bool) -> Authenticator:
    if not over_http:
        raise PalignStartupError("tenants are told apart by API keys, which only a server sees")
    try:
        return Authenticator(path)
    except TenantsError as error:
        raise PalignStartupError(f"--palign-tenants: {error.message}") from error
