"""On a vLLM whose internals moved palign refuses, whole; not enabled it is not there."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt
from tests.warm import run_vllm
from vllm_palign import PalignStartupError
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.compat.versions import SUPPORTED
from vllm_palign.endpoint import PalignEndpoint

SETTINGS = """
import inspect, json
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.worker.worker_base import WorkerWrapperBase
from vllm_palign import PalignStartupError, plugin
from vllm_palign.compat import hooks
from vllm_palign.plugin import command_line, wraps

def hooked():
    places = {
        "add_cli_args": EngineArgs, "from_cli_args": EngineArgs, "create_engine_config": EngineArgs,
        "process_inputs": InputProcessor, "init_device": WorkerWrapperBase,
    }
    found = []
    for method, owner in places.items():
        raw = inspect.getattr_static(owner, method, None)
        if hasattr(getattr(raw, "__func__", raw), "palign_original"):
            found.append(method)
    return found
"""


def test_a_parameter_that_was_renamed_moved_or_added_is_refused_and_nothing_is_half_installed() -> (
    None
):
    found = run_vllm(
        SETTINGS
        + """
from vllm.plugins import load_general_plugins

stock = InputProcessor.process_inputs
fits = "self, request_id, prompt, params, supported_tasks"
drifts = {
    "renamed": "self, request_id, prompt, sampling_params, supported_tasks",
    "reordered": "self, prompt, request_id, params, supported_tasks",
    "shorter": "self, request_id, prompt, params",
    "required": fits + ", tenant",
}
results = {}
for name, parameters in drifts.items():
    InputProcessor.process_inputs = eval(f"lambda {parameters}: None")
    del_device = WorkerWrapperBase.init_device
    del WorkerWrapperBase.init_device
    try:
        hooks.install(wraps.HOOKS)
        results[name] = "installed"
    except PalignStartupError as error:
        results[name] = [error.message, hooked()]
    WorkerWrapperBase.init_device = del_device
try:
    # What every vLLM process does first.
    load_general_plugins()
    results["vllm"] = "started"
except PalignStartupError as error:
    results["vllm"] = hooked()
InputProcessor.process_inputs = eval(f"lambda {fits}, *, later=None: None")
hooks.install((*command_line.COMMAND_LINE, *wraps.HOOKS))
once = [InputProcessor.process_inputs, EngineArgs.create_engine_config]
plugin.register()
results["again"] = once == [InputProcessor.process_inputs, EngineArgs.create_engine_config]
results["fits"] = hooked()
print("RESULT " + json.dumps(results))
""",
        VLLM_PLUGINS="palign",
    )
    for name in ("renamed", "reordered", "shorter", "required"):
        message, left = found[name]
        assert left == [], "nothing is half installed"
        assert f"supports {SUPPORTED}, installed is vllm 0." in message
        # One message for all that is wrong.
        assert "InputProcessor.process_inputs: " in message
        assert "WorkerWrapperBase.init_device" in message
    assert (
        "takes (self, request_id, prompt, sampling_params, supported_tasks)" in found["renamed"][0]
    )
    assert "needs further arguments ['tenant']" in found["required"][0]
    # vLLM did not go on, and not even the options are there.
    assert found["vllm"] == []
    assert found["again"], "a target is wrapped once"
    assert len(found["fits"]) == 5, "further parameters with defaults are no drift"


def test_what_we_read_and_is_gone_is_refused_before_anything_is_wrapped() -> None:
    found = run_vllm(
        SETTINGS
        + """
import vllm.config, vllm.envs, vllm.v1.engine
from vllm.plugins import load_general_plugins
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.output_processor import RequestState

del vllm.envs.environment_variables["VLLM_USE_RUST_FRONTEND"]
del vllm.config.ModelConfig.is_diffusion  # a property
del vllm.config.CacheConfig.kv_sharing_fast_prefill  # a field with a default ...
del vllm.config.CacheConfig.__annotations__["kv_sharing_fast_prefill"]
vllm.v1.engine.EngineCoreRequest = type("EngineCoreRequest", (), {})  # fields without one
RequestState.__init__ = lambda self: setattr(self, "prompt_len", 1)  # set by the constructor
try:
    load_general_plugins()
    print("RESULT " + json.dumps("started"))
except PalignStartupError as error:
    print("RESULT " + json.dumps([error.message, hooked()]))
""",
        VLLM_PLUGINS="palign",
    )
    message, left = found
    assert left == []
    for part in (
        "vllm.envs:environment_variables: has no VLLM_USE_RUST_FRONTEND;",
        "vllm.config:ModelConfig: has no is_diffusion;",
        "vllm.config:CacheConfig: has no kv_sharing_fast_prefill;",
        "vllm.v1.engine:EngineCoreRequest: has no cache_salt, prompt_embeds, prompt_token_ids, request_id, resumable, sampling_params;",
        "vllm.v1.engine.output_processor:RequestState: has no detokenizer, prompt_len, prompt_token_ids, request_id, request_index",
    ):
        assert part in message


def test_what_a_worker_reads_and_is_gone_stops_its_start(
    engines: Run, checkpoint: Callable[[str], Path]
) -> None:
    cases = {
        "NewRequestData: has no req_id, sampling_params": "drifted_request",
        "SchedulerOutput: has no finished_req_ids, scheduled_new_reqs": "drifted_step",
        "CPUModelRunner._dummy_run: got an unexpected keyword argument": "drifted_dummy_run",
    }
    jobs = [{"model": str(checkpoint("llama")), "tamper": tamper} for tamper in cases.values()]
    for message, result in zip(cases, engines(jobs), strict=True):
        assert result["error"]["type"] == "PalignStartupError", result["error"]
        assert message in result["error"]["message"]


def test_an_api_server_whose_state_is_another_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FrontEnd, "of", lambda config: object())
    state = SimpleNamespace(openai_serving_models=SimpleNamespace(base_model_paths=[]))
    with pytest.raises(PalignStartupError, match=r"openai_serving_models\.lora_requests"):
        asyncio.run(PalignEndpoint().init_state(object(), state, Namespace()))


def test_installed_but_not_enabled_there_are_the_options_and_nothing_else() -> None:
    found = run_vllm(
        SETTINGS
        + """
import inspect
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

load_general_plugins()
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
try:
    EngineArgs.from_cli_args(parser.parse_args(["--palign-max-strength", "2"]))
    refused = None
except PalignStartupError as error:
    refused = error.message
print("RESULT " + json.dumps({
    "hooked": hooked(),
    "module": InputProcessor.process_inputs.__module__,
    "options": [o for a in parser._actions for o in a.option_strings if "palign" in o or o == "--plugin"],
    "refused": refused,
    "untouched": EngineArgs.from_cli_args(parser.parse_args(["--model", "."])).additional_config,
}))
""",
        VLLM_PLUGINS=None,
    )
    assert found["hooked"] == ["add_cli_args", "from_cli_args"]
    assert found["module"] == "vllm.v1.engine.input_processor"
    assert {"--plugin", "--palign-personas", "--palign-max-strength"} <= set(found["options"])
    assert "need --plugin palign" in found["refused"]
    assert not found["untouched"]


def test_not_enabled_the_engine_is_stock_and_a_persona_is_an_error_not_a_plain_answer(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    random_persona(tmp_path / "alice.safetensors", seed=0, family=FAMILIES["llama"])
    job = {
        "model": str(checkpoint("llama")),
        "personas": {"alice": str(tmp_path / "alice.safetensors")},
    }
    plain, asked = {"prompt": random_prompt(1)}, {"prompt": random_prompt(1), "persona": "alice"}
    stock, refused, unarmed = engines(
        [
            job | {"batches": [[plain]]},
            job | {"batches": [[asked]]},
            job | {"batches": [{"rpc": "armed"}]},
        ],
        environment={"VLLM_PLUGINS": None},
    )
    assert stock["bank"] == [None]
    assert "'palign_armed' is not implemented" in unarmed["error"]["message"]
    assert refused["error"]["type"] == "PalignStartupError"
    assert "not enabled in this process" in refused["error"]["message"]
    on, drifted = engines([job | {"batches": [[plain, asked]]}, job | {"tamper": "drifted_runner"}])
    assert on["batches"][0][0] == stock["batches"][0][0], "bit for bit"
    assert on["batches"][0][1]["distributions"] != stock["batches"][0][0]["distributions"]
    # The model runner's own methods are checked where they are wrapped, in the worker.
    assert drifted["error"]["type"] == "PalignStartupError"
    assert (
        "CPUModelRunner._update_states: takes (output), wanted (scheduler_output)"
        in (drifted["error"]["message"])
    )
