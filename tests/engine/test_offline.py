"""The ``LLM`` class over a registry that others change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import TINY
from tests.oracle import logprobs
from tests.personas import random_persona
from tests.warm import run_vllm
from vllm_palign import Persona, save
from vllm_palign.registry import Registry
from vllm_palign.tenants.tenant import Tenant

PROMPT = [11, 222, 3333, 44]
CODE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm_palign import PersonaNotFound, load, persona_args
from vllm_palign.registry import Registry
from vllm_palign.tenants.tenant import Tenant
job = json.load(sys.stdin)
llm = LLM(job["model"], dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=64,
          kv_cache_memory_bytes=16 << 20,
          additional_config={"palign": {"personas": {"alice": job["files"][0]}, "store": job["store"]}})
def ask(name):
    params = SamplingParams(max_tokens=4, temperature=0, logprobs=0, detokenize=False,
                            extra_args=persona_args(name))
    (output,) = llm.generate([{"prompt_token_ids": job["prompt"]}], params, use_tqdm=False)
    (answer,) = output.outputs
    return [list(answer.token_ids), [next(iter(step.values())).logprob for step in answer.logprobs]]
out = {"alice": ask("alice"), "bob": ask("bob")}
with open(job["files"][2], "rb") as file:
    data = file.read()
Registry(job["store"]).put(Tenant(), "bob", load(job["files"][2]), data, replace=True)
out["bob again"] = ask("bob")
Registry(job["store"]).delete(Tenant(), "bob")
try:
    out["gone"] = ask("bob")
except PersonaNotFound as error:
    out["gone"] = error.message
print("RESULT " + json.dumps(out))
"""


def test_offline_requests_follow_the_registry(
    tiny_model: Path, tmp_path: Path, reference: Any
) -> None:
    personas = [random_persona(seed, **TINY, steered=6, scale=0.5) for seed in range(3)]
    files = [
        str(save(persona, tmp_path / f"{seed}.safetensors"))
        for seed, persona in enumerate(personas)
    ]
    store = f"sqlite:///{tmp_path / 'registry.sqlite'}"
    registry = Registry(store)
    registry.migrate()
    registry.put(Tenant(), "bob", personas[1], personas[1].to_bytes())
    registry.close()
    job = {"model": str(tiny_model), "files": files, "store": store, "prompt": PROMPT}
    out = run_vllm(
        CODE, stdin=json.dumps(job), VLLM_PLUGINS="palign", VLLM_ENABLE_V1_MULTIPROCESSING="0"
    )

    def same(answer: tuple[list[int], list[float]], persona: Persona) -> None:
        tokens, got = answer
        start = len(PROMPT) - 1
        wanted = logprobs(reference, [*PROMPT, *tokens], [(persona, 1.0)], start)[start:]
        assert np.abs(np.array(got) - wanted).max() < 1e-4

    same(out["alice"], personas[0])
    same(out["bob"], personas[1])
    same(out["bob again"], personas[2])
    assert "no persona 'bob'" in out["gone"]
    assert registry.get(Tenant(), "alice").digest == personas[0].digest
