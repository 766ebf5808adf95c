"""Turning it on, and refusing to start: the real command lines."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.directions import tiny_directions
from tests.personas import SMOLLM2, random_persona
from tests.warm import run_vllm, warm
from vllm_palign import PalignStartupError, Persona, save
from vllm_palign.config.config import PalignConfig
from vllm_palign.config.sources import parse_personas
from vllm_palign.config.store_url import StoreUrl, private_store
from vllm_palign.directions import to_bytes
from vllm_palign.plugin.refusals import refuse_front_ends
from vllm_palign.registry import Registry


def vllm(folder: Path, *arguments: str | Path, **environment: str | None) -> tuple[int, str]:
    """What ``vllm ARGUMENTS`` does, by a process that has vLLM imported."""
    script = (
        folder / "command.py"
    )  # not vllm.py: a process that this one starts looks here for vllm first
    script.write_text("from vllm.entrypoints.cli.main import main\nmain()\n")
    return warm().run(script, [str(one) for one in arguments], folder, environment)


def test_help_documents_the_flags(tmp_path: Path) -> None:
    code, text = vllm(tmp_path, "serve", "--help=palign")
    assert code == 0
    for flag in (
        "--plugin NAME",
        "--palign-personas NAME=PATH|DIR",
        "--palign-directions FILE",
        "--palign-store URL",
        "--palign-store-timeout SECONDS",
        "--palign-cache-mib N",
        "--palign-max-strength F",
    ):
        assert flag in text


# What `vllm serve` does with its arguments before an engine starts, many times in one process.
PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
results = []
for arguments in json.loads(sys.stdin.read()):
    import os; os.environ.pop("VLLM_PLUGINS", None)
    try:
        args = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(arguments)
        AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
        results.append("started")
    except ValueError as error:
        results.append(f"{type(error).__name__}: {error}")
print("RESULT " + json.dumps(results))
"""


def directions_file(folder: Path, **shape: int) -> str:
    path = folder / "directions.safetensors"
    path.write_bytes(to_bytes(tiny_directions(**shape)))
    return str(path)


def newer_store() -> str:
    """A registry that a later release has migrated."""
    url = private_store()
    Registry(url).migrate()
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    return url


@pytest.mark.shows(
    "refusals",
    "KV connectors not known to keep salts apart",
    note="KV connector 'ExampleConnector' is not known to keep cache salts apart",
)
@pytest.mark.shows(
    "refusals",
    "`kv_connector_module_path`, whatever the connector",
    note="kv_connector_module_path puts code of another origin under a connector's name, and whether that keeps "
    "cache salts apart is not known; leave it out",
)
@pytest.mark.shows(
    "refusals",
    "--kv-sharing-fast-prefill",
    note="--kv-sharing-fast-prefill runs layers on part of the tokens",
)
def test_the_server_refuses_to_start_and_says_why(tiny_model: Path, tmp_path: Path) -> None:
    on = ["--model", str(tiny_model), "--plugin", "palign"]
    nul = save(
        dataclasses.replace(random_persona(0, **TINY), description="a\0b", digest=""),
        tmp_path / "nul.safetensors",
    )
    cases = {
        "need --plugin palign": ["--palign-personas", "a=x.safetensors"],
        "neither NAME=PATH nor an existing file or folder": [*on, "--palign-personas", "nowhere"],
        "cannot be read": [*on, "--palign-personas", "a=nowhere.safetensors"],
        f"bob={nul}: the header of persona": [*on, "--palign-personas", f"bob={nul}"],
        "wanted sqlite:///FILE or postgresql://": [*on, "--palign-store", "mysql://u:p@h/d"],
        "postgresql://USER@HOST[:PORT]/DATABASE": [
            *on, "--palign-store", "postgresql://host:notaport/db",
        ],
        "unable to open database file": [*on, "--palign-store", "sqlite:////no/such/folder/r.sqlite"],
        "the registry's schema has version '9999'": [*on, "--palign-store", newer_store()],
        "max_strength": [*on, "--palign-max-strength", "nan"],
        "--palign-directions nowhere: ": [*on, "--palign-directions", "nowhere"],
        "hf://palign: wanted hf://": [*on, "--palign-directions", "hf://palign"],
        "num_layers is 30, the served model has 3; num_heads is 9": [
            *on, "--palign-directions", directions_file(tmp_path, **SMOLLM2),
        ],
        "persona: Extra inputs": [*on, "--additional-config", '{"palign": {"persona": {}}}'],
        "given both as --palign option": [
            *on, "--palign-max-strength", "2", "--additional-config", '{"palign": {"max_strength": 1}}',
        ],
        "KV connector 'ExampleConnector'": [
            *on, "--kv-transfer-config", '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}',
        ],
        "kv_connector_module_path 'vllm.": [
            *on, "--kv-transfer-config",
            '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_module_path": "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector"}',
        ],
        "kv-sharing-fast-prefill": [*on, "--kv-sharing-fast-prefill"],
    }  # fmt: skip
    results = run_vllm(PARSE, stdin=json.dumps(list(cases.values())), VLLM_PLUGINS=None)
    for message, result in zip(cases, results, strict=True):
        assert result.startswith("PalignStartupError: "), result
        assert message in result


@pytest.mark.shows("refusals", "--grpc and the Rust front end", note="--grpc has no middleware")
def test_front_ends_without_middleware_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PalignStartupError, match="--grpc has no middleware"):
        refuse_front_ends(Namespace(grpc=True))
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(PalignStartupError, match="VLLM_USE_RUST_FRONTEND"):
        refuse_front_ends(Namespace(grpc=False))


def test_an_unknown_plugin_is_a_usage_error(tmp_path: Path) -> None:
    code, text = vllm(tmp_path, "serve", "model", "--plugin", "nosuchthing")
    assert code == 2
    assert "--plugin nosuchthing: not installed; installed are" in text


@pytest.mark.shows(
    "refusals", "a persona of another shape", note="num_layers is 30, the served model has 3; ..."
)
def test_a_persona_of_another_shape_stops_the_server(tiny_model: Path, tmp_path: Path) -> None:
    path = save(
        random_persona(0, num_layers=30, num_heads=9, head_dim=64), tmp_path / "a.safetensors"
    )
    code, text = vllm(
        tmp_path, "serve", tiny_model, "--plugin", "palign", "--palign-personas", f"a={path}"
    )
    assert code == 2
    assert "error: palign: " in text and "Traceback" not in text
    assert "num_layers is 30, the served model has 3" in text
    assert "head_dim is 64, the served model has 32" in text


def test_a_registry_that_is_not_there_is_a_failure_and_no_wrong_usage(
    tiny_model: Path, tmp_path: Path
) -> None:
    store = "sqlite:////no/such/folder/r.sqlite"
    code, text = vllm(tmp_path, "serve", tiny_model, "--plugin", "palign", "--palign-store", store)
    assert code == 1
    assert "error: palign: --palign-store: " in text and "Traceback" not in text


def test_options_without_the_plugin_are_a_usage_error(tiny_model: Path, tmp_path: Path) -> None:
    code, text = vllm(
        tmp_path, "serve", tiny_model, "--palign-max-strength", "2", VLLM_PLUGINS=None
    )
    assert code == 2
    assert "error: palign: --palign-* options need --plugin palign" in text
    assert "Traceback" not in text


def test_arguments_travel_to_processes_of_api_servers() -> None:
    """vLLM pickles them."""
    code = """
import argparse, json, pickle, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
parser.set_defaults(dispatch_function=ServeSubcommand.cmd)
args = parser.parse_args(["--plugin", "palign", "--palign-max-strength", "2"])
again = pickle.loads(pickle.dumps(args))
print("RESULT " + json.dumps([again.palign_max_strength, "_refused_as_usage" in repr(again.dispatch_function)]))
"""
    assert run_vllm(code, VLLM_PLUGINS=None) == [2.0, True]


@pytest.mark.shows(
    "refusals", "run-batch", note="vllm run-batch has no middleware; use the LLM class or a server"
)
def test_run_batch_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    line = {
        "custom_id": "1", "method": "POST", "url": "/v1/completions",
        "body": {"model": str(tiny_model), "prompt": "x", "persona": "alice"},
    }  # fmt: skip
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    code, text = vllm(
        tmp_path, "run-batch", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--model", tiny_model,
        VLLM_PLUGINS="palign",
    )  # fmt: skip
    assert code != 0
    assert "run-batch has no middleware" in text
    assert not (tmp_path / "out.jsonl").exists()


BROKEN = """
import json, sys
from vllm.plugins import load_general_plugins
{fault}
try:
    load_general_plugins(); said = "vLLM goes on"
except Exception as error:
    said = type(error).__name__
print("RESULT " + json.dumps(said))
"""


@pytest.mark.parametrize(
    ("fault", "enabled"),
    [
        (
            "import vllm.engine.arg_utils as a\n"
            "a.EngineArgs.from_cli_args = classmethod(lambda cls, namespace, more: None)",
            "PalignStartupError",
        ),
        ("sys.modules['vllm_palign.worker.ops'] = None", "ModuleNotFoundError"),
    ],
    ids=["drifted", "cannot be imported"],
)
def test_a_plugin_that_does_not_work_stops_vllm_only_where_it_is_enabled(
    fault: str, enabled: str
) -> None:
    code = BROKEN.format(fault=fault)
    assert run_vllm(code, VLLM_PLUGINS="palign") == enabled
    assert run_vllm(code, VLLM_PLUGINS=None) == "vLLM goes on"


def test_enabling_leaves_other_plugins_on() -> None:
    code = (
        "import json, os\n"
        "from vllm_palign.switch import enable\n"
        "enable('palign')\n"
        "print('RESULT ' + json.dumps(os.environ['VLLM_PLUGINS']))"
    )
    before = run_vllm(code, VLLM_PLUGINS=None).split(",")
    assert "palign" in before
    assert "lora_filesystem_resolver" in before, "vLLM's own plugins were on before"
    assert run_vllm(code, VLLM_PLUGINS="something").split(",") == ["palign", "something"]
    assert run_vllm(code, VLLM_PLUGINS="palign") == "palign"


def test_personas_are_named_by_argument_or_by_their_file(
    tiny_personas: tuple[Path, dict[str, Persona]], tmp_path: Path
) -> None:
    folder = tiny_personas[0]
    assert parse_personas([f"x={folder}/p0.safetensors"]) == {"x": f"{folder}/p0.safetensors"}
    assert set(parse_personas([str(folder)])) == set(tiny_personas[1])
    file = f"{folder}/p0.safetensors"
    assert parse_personas([file]) == {"p0": file}
    (tmp_path / "empty").mkdir()
    for wrong in (["plain.safetensors"], [str(tmp_path / "empty")], ["a=x", "a=y"], ["bad name=x"]):
        with pytest.raises(PalignStartupError, match="--palign-personas"):
            parse_personas(wrong)


OFFLINE = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext
model, directions = json.loads(sys.stdin.read())
def make(usage):
    config = {"palign": {"directions": directions}}
    return EngineArgs(model=model, additional_config=config).create_engine_config(usage)
try:
    make(UsageContext.LLM_CLASS); said = "started"
except ValueError as error:
    said = f"{type(error).__name__}: {error}"
from vllm_palign.admission.front_end import FrontEnd
served = make(UsageContext.OPENAI_API_SERVER)
print("RESULT " + json.dumps([said, FrontEnd.of(served).directions.digest]))
"""


def test_directions_are_for_servers_where_answers_can_be_put(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = directions_file(tmp_path, **TINY)
    said, digest = run_vllm(
        OFFLINE, stdin=json.dumps([str(tiny_model), path]), VLLM_PLUGINS="palign"
    )
    assert said.startswith("PalignStartupError: directions make personas of answers")
    assert "palign-fit run --directions" in said
    assert digest == tiny_directions(**TINY).digest


def test_files_that_are_hidden_in_a_folder_are_no_personas(tmp_path: Path) -> None:
    for name in ("alice.safetensors", "._alice.safetensors", ".safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert parse_personas([str(tmp_path)]) == {"alice": str(tmp_path / "alice.safetensors")}


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_file_whose_name_can_be_none_is_refused_with_its_path(
    tmp_path: Path, as_folder: bool
) -> None:
    path = tmp_path / "alice (1).safetensors"
    path.write_bytes(b"")
    with pytest.raises(PalignStartupError) as refused:
        parse_personas([str(tmp_path if as_folder else path)])
    assert f"{path}: 'alice (1)' cannot name a persona" in refused.value.message
    assert "rename the file, or name it: NAME=PATH" in refused.value.message


@pytest.mark.parametrize(
    "config",
    [
        {"palign": {"unknown": 1}},
        {"palign": {"max_strength": True}},
        {"palign": {"max_strength": 0}},
        {"palign": {"cache_mib": 0}},
        {"palign": {"store_timeout": float("inf")}},
        {"palign": {"personas": {"bad name": "x"}}},
        {"palign": {"personas": ["x"]}},
        {"palign": "x"},
        {"palign": []},
        {"palign": None},
        "x",
    ],
)
def test_a_wrong_config_is_refused_and_named(config: Any) -> None:
    with pytest.raises(PalignStartupError, match="additional_config"):
        PalignConfig.read(config)


def test_paths_may_be_path_objects() -> None:
    read = PalignConfig.read({"palign": {"personas": {"a": Path("a.safetensors")}}})
    assert read.personas == {"a": "a.safetensors"}


def test_a_stores_password_stays_out_of_logged_arguments() -> None:
    assert repr(StoreUrl("postgresql://u:se@cret@h/d")) == "'postgresql://u:***@h/d'"
    assert repr(StoreUrl("sqlite:////a/b")) == "'sqlite:////a/b'"


def test_persona_args_refuse_to_be_ignored() -> None:
    code = (
        "import vllm_palign\n"
        "import vllm\n"
        "try:\n    vllm_palign.persona_args('alice'); said = ''\n"
        "except vllm_palign.PalignStartupError as error:\n    said = error.message\n"
        "import json; print('RESULT ' + json.dumps(said))"
    )
    assert "VLLM_PLUGINS" in run_vllm(code, VLLM_PLUGINS=None)
    assert run_vllm(code, VLLM_PLUGINS="palign") == ""
