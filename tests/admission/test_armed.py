"""What engines must say of themselves, and requests that only an armed one can read."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.conftest import TINY
from tests.personas import random_persona
from vllm_palign import PalignStartupError, PersonaConflict, PersonaInvalid
from vllm_palign.admission import armed, sessions
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.effect import SCOPES, Effect
from vllm_palign.persona import Scope
from vllm_palign.selection import REQUEST_KEY
from vllm_palign.shape import ModelShape
from vllm_palign.worker.ops import TRACED

LAYERS = frozenset(range(4))


def rank(*layers: int, traced: str = TRACED, tested: bool = True) -> dict[str, Any]:
    return {"traced": traced, "layers": list(layers), "scopes": SCOPES, "tested": tested}


def test_pipeline_stages_hold_the_models_layers_together() -> None:
    armed.check_engines([[rank(0, 1), rank(2, 3)], [rank(0, 1, 2, 3)] * 2], LAYERS)


@pytest.mark.parametrize(
    ("backend", "stage", "layers"),
    [("mp", 0, LAYERS), (None, 1, LAYERS), ("external_launcher", 0, {0, 1}), ("external_launcher", 1, {2, 3})],
)  # fmt: skip
def test_a_rank_of_torchrun_answers_for_its_stage_alone(
    backend: str | None, stage: int, layers: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``collective_rpc`` asks the one rank there."""
    monkeypatch.setattr(ModelShape, "of", lambda model: SimpleNamespace(attention_layers=LAYERS))
    ends = [(0, 2), (2, 4)]
    config = SimpleNamespace(
        model_config=SimpleNamespace(get_layers_start_end_indices=lambda parallel: ends[parallel.rank]),
        parallel_config=SimpleNamespace(distributed_executor_backend=backend, rank=stage),
    )  # fmt: skip
    asked = armed.layers_of_engine(config)
    assert asked == layers
    armed.check_engines([[rank(*layers)]], asked)
    with pytest.raises(PalignStartupError):
        armed.check_engines([[rank(*sorted(layers)[1:])]], asked)


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ([[rank(0, 1, 2, 3)], [rank(0, 1)]], "engine 1 of 2 does not steer: its ranks are armed in layers"),
        ([[rank(0, 1, 2, 3), rank(0, 1, 2, 3, traced="old")]], "rank 1 runs the offset code old"),
        ([[rank(0, 1), rank(2, 3, tested=False)]], "ranks [1] have not been through palign's self-test"),
        ([[rank(0, 1, 2, 3)], NotImplementedError("'palign_armed' is not implemented")],
         "engine 1 of 2 does not steer: it cannot say what it is armed with ('palign_armed'"),
        ([[{"traced": TRACED, "layers": [0, 1, 2, 3], "tested": True}]], "rank 0 steers the scopes None"),
        ([[]], "its ranks are armed in layers []"),
    ],
)  # fmt: skip
def test_an_engine_that_does_not_steer_is_named_with_its_fault(engines: Any, said: str) -> None:
    with pytest.raises(PalignStartupError) as refused:
        armed.check_engines(engines, LAYERS)
    assert said in refused.value.message


def request(
    effect: Effect | None, *, scope: Scope = "answers", start: int = 3, **changes: Any
) -> Any:
    """What our code reads of an ``EngineCoreRequest``."""
    packed = None if effect is None else effect.pack(scope=scope, start=start)
    extra = None if packed is None else {REQUEST_KEY: packed, "other": 1}
    params = SimpleNamespace(extra_args=extra, max_tokens=7)
    return SimpleNamespace(**{"sampling_params": params, "resumable": False} | changes)


def effect(seed: int) -> Effect:
    return Effect.compose([(random_persona(seed, **TINY, steered=3), 1.0)])


def test_a_sealed_request_has_no_max_tokens_until_an_armed_engine_opens_it() -> None:
    asked = request(effect(1))
    kept = asked.sampling_params
    armed.seal(asked)
    armed.seal(asked)  # once is enough
    assert asked.sampling_params.max_tokens is None
    assert kept.max_tokens == 7 and "max_tokens" not in kept.extra_args[REQUEST_KEY]
    # As it arrives in another process.
    extra = msgspec.msgpack.decode(msgspec.msgpack.encode(asked.sampling_params.extra_args))
    arrived = request(None, sampling_params=SimpleNamespace(extra_args=extra, max_tokens=None))
    armed.unseal(arrived)
    assert arrived.sampling_params.max_tokens == 7
    assert Effect.unpack(arrived.sampling_params.extra_args[REQUEST_KEY]).key == effect(1).key
    assert "offsets" not in repr(arrived)


def test_plain_requests_are_left_alone() -> None:
    for plain in (request(None), request(None, sampling_params=None)):
        before = plain.sampling_params
        armed.seal(plain)
        armed.unseal(plain)
        assert plain.sampling_params is before


def test_samples_that_share_their_parameters_are_sealed_each() -> None:
    first = request(effect(1))
    second = request(None, sampling_params=first.sampling_params)
    for sample in (first, second):
        armed.seal(sample)
    for sample in (first, second):
        armed.unseal(sample)
        assert sample.sampling_params.max_tokens == 7


def test_an_armed_engine_refuses_what_was_not_sealed_by_this_release() -> None:
    unadmitted = request(None)
    unadmitted.sampling_params.extra_args = {REQUEST_KEY: '{"mix": {"alice": 1}}'}
    other = request(effect(1))
    armed.seal(other)
    other.sampling_params.extra_args[REQUEST_KEY]["seal"] = "another"
    for wrong in (unadmitted, request(effect(1)), other):
        with pytest.raises(PersonaInvalid, match="has not admitted"):
            armed.unseal(wrong)
    changed = request(effect(1))
    armed.seal(changed)
    changed.sampling_params.extra_args[REQUEST_KEY]["key"] = effect(2).key
    with pytest.raises(PersonaInvalid, match="do not match their key"):
        armed.unseal(changed)


class State:
    """Stands for vLLM's RequestState."""


def test_a_session_keeps_the_effect_it_began_with() -> None:
    for first, same, others in (
        (effect(1), effect(1), (effect(2), None)),
        (None, None, (effect(1),)),
    ):
        state = State()
        sessions.check(None, request(first, resumable=True))
        sessions.remember(state, request(first, resumable=True))
        sessions.check(state, request(same, resumable=True))
        for other in others:
            with pytest.raises(PersonaConflict, match="begin another session"):
                sessions.check(state, request(other, resumable=True))
            # What only ends the session.
            sessions.check(state, request(other))


def test_a_session_is_steered_from_the_token_where_it_began_to_be() -> None:
    state = State()
    sessions.remember(state, request(effect(1), start=3, resumable=True))
    part = request(effect(1), start=9, resumable=True)
    sessions.check(state, part)
    sessions.remember(state, part)
    assert part.sampling_params.extra_args[REQUEST_KEY]["start"] == 3
    with pytest.raises(PersonaConflict, match="scope"):
        sessions.check(state, request(effect(1), scope="all", start=0, resumable=True))


def front_end(*, over_http: bool) -> FrontEnd:
    resolver: Any = SimpleNamespace(shape=SimpleNamespace(attention_layers=LAYERS))
    return FrontEnd(resolver, "model", over_http=over_http)


class Client:
    """AsyncLLM and its client, with two engines."""

    core_engines = (b"0", b"1")

    def __init__(self, *answers: Any) -> None:
        self.engine_core = self
        self._answers = dict(zip(self.core_engines, answers, strict=True))

    async def _call_utility_async(self, method: str, name: str, *_: Any, engine: bytes) -> Any:
        assert (method, name) == ("collective_rpc", "palign_armed")
        answer = self._answers[engine]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_every_engine_is_asked_and_one_without_the_plugin_stops_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    monkeypatch.setattr("os.kill", lambda _, number: killed.append(number))
    sound, stock = [rank(0, 1, 2, 3)], RuntimeError("'palign_armed' is not implemented")
    server = front_end(over_http=True)
    asyncio.run(server.stop_unless_armed(Client(sound, sound)))
    assert server.unarmed is None
    with pytest.raises(PalignStartupError, match="engine 1 of 2 does not steer"):
        asyncio.run(server.stop_unless_armed(Client(sound, stock)))
    assert killed == [signal.SIGTERM]
    assert isinstance(server.unarmed, PalignStartupError)
    in_process = front_end(over_http=False)
    with pytest.raises(PalignStartupError, match="engine 0 of 2"):
        asyncio.run(in_process.stop_unless_armed(Client(stock, sound)))
    assert killed == [signal.SIGTERM], "the process is the user's own"
