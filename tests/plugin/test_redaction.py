"""What vLLM's log shows of registries and offsets."""

from __future__ import annotations

import json
import logging
import pickle

import msgspec
import pytest

from tests.conftest import TINY
from tests.personas import random_persona
from tests.warm import run_vllm
from vllm_palign.config.store_url import StoreUrl, without_passwords
from vllm_palign.effect import Effect
from vllm_palign.plugin.redaction import keep_passwords_out_of_logs

URLS = {
    "postgresql://u:se@cret@h/d": "postgresql://u:***@h/d",
    "postgresql://u@h/d?password=se@cret&connect_timeout=3": (
        "postgresql://u@h/d?password=***&connect_timeout=3"
    ),
    "postgres://h/d?application_name=a&PASSWORD=secret": (
        "postgres://h/d?application_name=a&PASSWORD=***"
    ),
    "postgresql+psycopg://u:secret@h/d?sslpassword=secret": (
        "postgresql+psycopg://u:***@h/d?sslpassword=***"
    ),
    "sqlite:////a/b": "sqlite:////a/b",
}


@pytest.mark.parametrize("url", URLS)
def test_passwords_stay_out_of_what_is_printed(url: str) -> None:
    assert repr(StoreUrl(url)) == repr(URLS[url])
    line = f"non-default args: {{'additional_config': {{'palign': {{'store': {url!r}}}}}, 'x': 1}}"
    assert without_passwords(line) == line.replace(url, URLS[url])


PRINTED = """
import io, json, logging, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.serve.utils.api_utils import log_non_default_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
log = io.StringIO()
printing = logging.getLogger(log_non_default_args.__module__)
printing.addHandler(logging.StreamHandler(log))
printing.setLevel(logging.INFO)
config = json.load(sys.stdin)
parser = FlexibleArgumentParser()
parser.add_argument("model_tag", nargs="?")  # as `vllm serve` has it
arguments = ["--plugin", "palign", "--additional-config", json.dumps(config)]
log_non_default_args(make_arg_parser(parser).parse_args(arguments))
log_non_default_args(EngineArgs(".", additional_config=config))
print("RESULT " + json.dumps(log.getvalue()))
"""


def test_vllm_prints_its_arguments_without_the_registrys_password() -> None:
    config = {"palign": {"store": "postgresql://u:tiger@h/d?password=tiger"}}
    printed = run_vllm(PRINTED, stdin=json.dumps(config))
    assert printed.count("'store': 'postgresql://u:***@h/d?password=***'") == 2
    assert "tiger" not in printed


def test_asked_twice_it_filters_once() -> None:
    keep_passwords_out_of_logs()
    keep_passwords_out_of_logs()
    assert len(logging.getLogger("vllm.entrypoints.serve.utils.api_utils").filters) == 1


def test_dumps_show_the_key_of_an_effect_and_not_its_offsets() -> None:
    effect = Effect.compose([(random_persona(1, **TINY, steered=3), 1.0)])
    packed = effect.pack()
    assert repr({"palign": packed}) == f"{{'palign': <palign effect {effect.key[:12]}>}}"
    for carried in (
        msgspec.msgpack.decode(msgspec.msgpack.encode(packed)),
        pickle.loads(pickle.dumps(packed)),
    ):
        assert Effect.unpack(carried).key == effect.key
