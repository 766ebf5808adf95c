"""Settings of vLLM under which a persona would be ignored, applied wrongly, or shared with others."""

from __future__ import annotations

import os
from typing import Any

from vllm_palign.errors import PalignStartupError

KEYED_BY_SALT = {"LMCacheMPConnector"}
"""KV connectors that tell blocks apart by their tokens and the request's salt."""
_SAFE_CONNECTORS = {"OffloadingConnector", "MooncakeStoreConnector", *KEYED_BY_SALT}
"""The others of these go by vLLM's block hashes, which contain the salt and whose effect a block was computed
under. Any further one might key on token ids alone, and hand one persona's KV to another."""


def refuse_unsupported(vllm_config: Any, usage_context: Any) -> None:
    """Raises PalignStartupError with every setting under which offsets would not, or wrongly, apply."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    problems = []
    if getattr(usage_context, "name", "") == "OPENAI_BATCH_RUNNER":
        problems.append("vllm run-batch has no middleware; use the LLM class or a server")
    if model.runner_type != "generate":
        problems.append(f"the model runs as {model.runner_type!r}; only text generation is steered")
    if model.is_encoder_decoder:
        problems.append("encoder-decoder models are not steered")
    if model.is_attention_free:
        problems.append("the model has no attention")
    if model.is_diffusion:
        problems.append("diffusion language models are not steered")
    if parallel.use_ubatching:
        problems.append("dual batch overlap splits steps; turn --enable-dbo / --ubatch-size off")
    if parallel.prefill_context_parallel_size > 1:
        problems.append("--prefill-context-parallel-size splits the tokens of a step")
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        problems.append("--kv-sharing-fast-prefill runs layers on part of the tokens")
    connector = getattr(vllm_config.kv_transfer_config, "kv_connector", None)
    if connector is not None and connector not in _SAFE_CONNECTORS:
        problems.append(
            f"KV connector {connector!r} is not known to keep cache salts apart "
            f"(known: {', '.join(sorted(_SAFE_CONNECTORS))})"
        )
    path = getattr(vllm_config.kv_transfer_config, "kv_connector_module_path", None)
    if path is not None:
        problems.append(
            f"kv_connector_module_path {path!r} puts code of another origin under a connector's name, and whether "
            "that keeps cache salts apart is not known; leave it out"
        )
    if problems:
        raise PalignStartupError("palign cannot steer this configuration: " + "; ".join(problems))


def refuse_front_ends(args: Any) -> None:
    """Front ends that our middleware is not part of would answer plainly."""
    if getattr(args, "grpc", False):
        raise PalignStartupError(
            "--grpc has no middleware, so personas would be ignored; serve HTTP"
        )
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0", "False", "false"):
        raise PalignStartupError(
            "VLLM_USE_RUST_FRONTEND bypasses Python middleware, so personas would be ignored; unset it"
        )


def refuse_beside_tenants(args: Any) -> None:
    """Settings of vLLM that would keep tenants out or let them meet."""
    from vllm import envs

    if getattr(args, "api_key", None) or envs.VLLM_API_KEY:
        raise PalignStartupError(
            "--palign-tenants and --api-key (VLLM_API_KEY): vLLM would refuse the tenants' keys; make its "
            "users keys of their own (`palign tenants new-key`)"
        )
    if envs.VLLM_ENABLE_RESPONSES_API_STORE:
        raise PalignStartupError(
            "--palign-tenants and VLLM_ENABLE_RESPONSES_API_STORE: stored responses have no owner, so one "
            "tenant could go on with another's; unset it"
        )
