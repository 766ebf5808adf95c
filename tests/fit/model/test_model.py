"""Finding the projections, reading head outputs, likelihoods and steering, against plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.errors import FitError, InputError
from palign_fit.model import prompts
from palign_fit.model.continuations import collect
from palign_fit.model.likelihood import statement_loglik
from palign_fit.model.model import find_projections, model_dtype, open_model, wrap
from palign_fit.model.steer import steered

from tests.fit.conftest import HEAD_DIM, HEADS, LAYERS
from vllm_palign.persona import Persona

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16},
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 2},
    "qwen2_moe": {"num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
}  # fmt: skip


def prefix_and_lines(subject: Any) -> tuple[list[int], list[list[int]]]:
    texts = ["I talk.", "I find good answers when a task is hard.", "I worry a lot."]
    return (
        prompts.chat_prefix(subject.tokenizer, prompts.OPENINGS[0]),
        [prompts.continuation(subject.tokenizer, text) for text in texts],
    )


def persona(seed: int = 0, alpha: float = 2.0, **shape: int) -> Persona:
    rng = np.random.default_rng(seed)
    shape = {"num_layers": LAYERS, "num_heads": HEADS, "head_dim": HEAD_DIM, **shape}
    return Persona(
        name="p",
        layers=np.array([0, 1, 1], np.int32),
        heads=np.array([3, 0, 2], np.int32),
        offsets=rng.normal(size=(3, shape["head_dim"])).astype(np.float32),
        alpha=alpha,
        base_model="tiny",
        **shape,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_mainstream_family_can_be_wrapped_and_steered(family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    usual = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if family in ("gpt2", "bloom"):
        usual = {name: usual[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")} | (
            {"hidden_size": 32} if family == "bloom" else {}
        )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**usual, **FAMILIES[family]})
    ).float()
    subject = wrap(model, None, base_model=family)
    assert (subject.num_layers, subject.num_heads) == (2, 4)
    lines = [[5, 6, 7], [8, 9, 10, 11, 12]]
    read = collect(subject, [3, 4], lines)
    assert read.shape == (2, 2, 4, subject.head_dim)
    assert np.isfinite(read).all() and (read[0] != read[1]).any()
    plain = statement_loglik(subject, [3, 4], lines)
    with torch.no_grad():
        for row, line in enumerate(lines):
            logp = model(torch.tensor([[3, 4, *line]])).logits.log_softmax(-1)[0, 1:-1]
            wanted = logp.gather(1, torch.tensor(line)[:, None]).mean()
            assert plain[row] == pytest.approx(float(wanted), abs=1e-4)
    one = persona(num_layers=2, num_heads=4, head_dim=subject.head_dim)
    with steered(subject, one):
        assert (statement_loglik(subject, [3, 4], lines) != plain).all()
    assert (statement_loglik(subject, [3, 4], lines) == plain).all()


def test_head_dim_comes_from_the_model_not_from_hidden_size(tiny: Any) -> None:
    assert tiny.model.config.hidden_size // HEADS != HEAD_DIM
    assert (tiny.num_layers, tiny.num_heads, tiny.head_dim) == (LAYERS, HEADS, HEAD_DIM)
    assert tiny.base_model == "tiny-fit"


def test_activations_are_the_projections_input_at_the_last_real_token(tiny: Any) -> None:
    import torch

    prefix, lines = prefix_and_lines(tiny)
    read = collect(tiny, prefix, lines)
    for row, line in enumerate(lines):
        seen = []
        handles = [
            module.register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0][0, -1].clone())
            )
            for module in tiny.projections
        ]
        with torch.no_grad():
            tiny.model(torch.tensor([prefix + line]))
        for handle in handles:
            handle.remove()
        wanted = torch.stack(seen).numpy().reshape(LAYERS, HEADS, HEAD_DIM)
        assert np.allclose(read[row], wanted, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.5, 0.0])
def test_steering_equals_a_bias_of_w_o_d(tiny: Any, strength: float) -> None:
    import copy

    import torch

    one = persona()
    prefix, lines = prefix_and_lines(tiny)
    lines = [*lines, tiny.tokenizer(prompts.NEUTRAL_TEXT)["input_ids"]]
    with steered(tiny, one, strength):
        got = statement_loglik(tiny, prefix, lines)
    oracle = copy.deepcopy(tiny.model)
    for layer, block in enumerate(oracle.model.layers):
        d = torch.zeros(HEADS, HEAD_DIM)
        for k in np.flatnonzero(one.layers == layer):
            d[int(one.heads[k])] = torch.tensor(strength * one.alpha * one.offsets[k])
        projection = block.self_attn.o_proj
        projection.bias = torch.nn.Parameter(projection.weight @ d.flatten())
    biased = wrap(oracle, tiny.tokenizer, base_model="oracle")
    assert np.allclose(got, statement_loglik(biased, prefix, lines), atol=1e-5)


def test_hooks_are_gone_after_an_error_inside_the_block(tiny: Any) -> None:
    with pytest.raises(RuntimeError), steered(tiny, persona()):
        raise RuntimeError
    assert not any(module._forward_pre_hooks for module in tiny.projections)


def test_a_persona_of_another_geometry_is_refused(tiny: Any) -> None:
    with (
        pytest.raises(InputError, match="fit it on this model"),
        steered(tiny, persona(head_dim=8)),
    ):
        pass


def test_a_tokenizer_without_a_chat_template_gets_plain_text(tiny: Any) -> None:
    import copy

    bare = copy.deepcopy(tiny.tokenizer)
    bare.chat_template = None
    wanted = bare("Question: What are you like?\nAnswer:")["input_ids"]
    assert prompts.chat_prefix(bare, prompts.OPENINGS[1]) == wanted


def test_the_chat_template_is_the_models_own(tiny: Any) -> None:
    text = tiny.tokenizer.decode(prompts.chat_prefix(tiny.tokenizer, prompts.OPENINGS[1]))
    assert text.split() == ["<user>", "What", "are", "you", "like", "?", "<end>", "<assistant>"]


def test_a_model_without_head_outputs_is_refused_by_name(tiny: Any) -> None:
    import copy

    broken = copy.deepcopy(tiny.model)
    broken.model.layers[1].self_attn.o_proj = None
    assert len(find_projections(broken)) == LAYERS - 1
    with pytest.raises(FitError, match=r"LlamaForCausalLM.*cannot be steered"):
        wrap(broken, tiny.tokenizer, base_model="broken")


def test_a_folder_that_is_no_model_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        open_model(str(tmp_path))


def test_a_checkpoints_own_program_is_never_run_whatever_is_typed(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked: list[Any] = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    with pytest.raises(InputError, match="cannot be opened"):
        open_model(str(tmp_path))
    assert not asked and not (tmp_path / "ran").exists()


def test_weights_that_are_cut_off_are_an_input_error(tiny: Any, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be opened"):
        open_model(str(tmp_path))


def test_a_half_precision_checkpoint_is_float32_on_a_cpu_unless_asked_otherwise(
    tiny: Any, tmp_path: Path
) -> None:
    import copy

    copy.deepcopy(tiny.model).bfloat16().save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    # On a CPU with instructions for bfloat16 gradients alone are (test_narrow).
    assert model_dtype(open_model(str(tmp_path), device="cpu")).split(",")[0] == "float32"
    assert model_dtype(open_model(str(tmp_path), device="cpu", dtype="bfloat16")) == "bfloat16"
