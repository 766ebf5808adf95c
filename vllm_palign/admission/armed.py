"""Whether the engines steer: what every rank of every engine must say before a persona is promised to anybody.

An engine whose process runs without the plugin (a headless node started without ``--plugin palign``, a Ray
actor where the package is missing) answers like any other, plainly. Three things stand against it. An armed
engine asks its own ranks (``check_ranks``), a front end asks every engine when it starts and when engines have
come or gone (``check_engines``), and a steered request can be read by armed engines alone (``seal``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_palign.effect import SCOPES, Effect, Packed, first_steered, is_packed
from vllm_palign.errors import PalignStartupError, PersonaInvalid
from vllm_palign.selection import REQUEST_KEY
from vllm_palign.shape import ModelShape
from vllm_palign.worker.ops import TRACED

SEAL = f"{TRACED}.2"
"""What an engine must know to run a steered request: the traced code, and what travels in it. 2: the index of
the first token."""

METHOD = "palign_armed"
"""The worker's method that says it, called by name through vLLM's ``collective_rpc``."""

_WHAT_TO_DO = (
    "every node and process of the engine needs the same release of vllm-palign and --plugin palign "
    '(or VLLM_PLUGINS="palign"), headless ones too'
)

Rank = Mapping[str, Any]
"""One rank's ``palign_armed``: ``traced``, ``layers``, ``scopes`` and ``tested``."""


def check_ranks(ranks: Sequence[Rank], layers: frozenset[int], *, engine: str = "engine") -> None:
    """``ranks`` of one engine: all with our traced code, and together every layer of ``layers``.

    Raises PalignStartupError, naming ``engine`` and every rank at fault.
    """
    problems = [
        f"rank {rank} runs the offset code {armed['traced']}, this process has {TRACED}"
        for rank, armed in enumerate(ranks)
        if armed["traced"] != TRACED
    ]
    problems += [
        f"rank {rank} steers the scopes {armed.get('scopes')}, this process wants {SCOPES}"
        for rank, armed in enumerate(ranks)
        if armed.get("scopes") != SCOPES
    ]
    held = {layer for armed in ranks for layer in armed["layers"]}
    if held != layers:
        problems.append(
            f"its ranks are armed in layers {sorted(held)}, the model has self-attention in {sorted(layers)}"
        )
    if problems:
        raise PalignStartupError(f"{engine} does not steer: {'; '.join(problems)}; {_WHAT_TO_DO}")


def check_engines(
    engines: Sequence[Sequence[Rank] | BaseException], layers: frozenset[int]
) -> None:
    """What each engine's ranks answered, or the error it answered with; all have to be armed and tested.

    Raises PalignStartupError, naming the engine.
    """
    for number, answer in enumerate(engines):
        engine = f"engine {number} of {len(engines)}"
        if isinstance(answer, BaseException):
            raise PalignStartupError(
                f"{engine} does not steer: it cannot say what it is armed with ({answer}); {_WHAT_TO_DO}"
            ) from answer
        check_ranks(answer, layers, engine=engine)
        untested = [rank for rank, armed in enumerate(answer) if not armed["tested"]]
        if untested:
            raise PalignStartupError(
                f"{engine} does not steer: ranks {untested} have not been through palign's self-test"
            )


def layers_of_engine(vllm_config: Any) -> frozenset[int]:
    """Layers that the ranks hold together whom one engine of ``vllm_config`` can ask: all that have
    self-attention. Under ``external_launcher`` an engine is one rank and knows no other, so its stage's."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    layers = ModelShape.of(model).attention_layers
    if parallel.distributed_executor_backend != "external_launcher":
        return layers
    return layers & frozenset(range(*model.get_layers_start_end_indices(parallel)))


def seal(request: Any) -> None:
    """Make an admitted, steered ``EngineCoreRequest`` one that a stock engine cannot run.

    ``max_tokens``, without which vLLM makes no request of it and answers with an error, travels beside the
    offsets until ``unseal``. The front end's own parameters stay as they are.
    """
    packed = packed_in(request.sampling_params)
    if packed is None or "max_tokens" in packed:
        return
    params = copy.copy(request.sampling_params)
    # Copies of both dicts: the requests of several samples share them.
    entry = Packed(packed, seal=SEAL, max_tokens=params.max_tokens)
    params.extra_args = {**params.extra_args, REQUEST_KEY: entry}
    params.max_tokens = None
    request.sampling_params = params


def unseal(request: Any) -> None:
    """In an armed engine, before vLLM makes its request of the ``EngineCoreRequest``. Plain ones stay as they are.

    Raises PersonaInvalid for one that nobody has sealed, or another release, or that was changed on the way; the
    engine answers with an error. A worker, which sees it next, could only stop.
    """
    params = request.sampling_params
    if params is None or REQUEST_KEY not in (params.extra_args or {}):
        return
    packed = packed_in(params)
    if packed is None or packed.get("seal") != SEAL:
        raise PersonaInvalid(
            "a request reached the engine with a persona that this release of vllm-palign has not admitted"
        )
    Effect.unpack(packed)
    first_steered(packed)
    params.max_tokens = packed["max_tokens"]
    # It came as a plain dict, and the engine prints it when it crashes.
    params.extra_args = {**params.extra_args, REQUEST_KEY: Packed(packed)}


def packed_in(params: Any) -> Any:
    """The packed effect in ``params``, if they hold one."""
    value = (params.extra_args or {}).get(REQUEST_KEY) if params is not None else None
    return value if is_packed(value) else None
