"""A Hugging Face decoder, opened for fitting: its attention output projections and their geometry."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palign_fit.errors import FitError, InputError
from palign_fit.model.memory import refuse_too_large
from palign_fit.model.narrow import narrower
from vllm_palign.directions.record import ModelFacts
from vllm_palign.persona import model_name

if TYPE_CHECKING:
    import torch

_PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_projection")
_PROJECTION = re.compile(
    rf"(?:.*\.)?(\d+)\.(?:\w+\.)*?\w*(?:attn|attention)\w*\.(?:\w+\.)*?({'|'.join(_PROJECTION_NAMES)})"
)
_OTHER_TOWER = re.compile(r"(vision|visual|audio|image|cross|encoder_attn)", re.IGNORECASE)


@dataclass(frozen=True)
class OpenedModel:
    """A causal language model in eval mode.

    ``projections`` holds the L attention output projections in layer order; the input of each is
    [..., H * D], the concatenated head outputs.
    """

    model: Any
    tokenizer: Any
    projections: tuple[Any, ...]
    num_heads: int
    head_dim: int
    base_model: str
    gradient_dtype: str = ""
    """What gradients are computed in, if not in the model's own dtype; see ``narrow.gradient_dtype``."""

    @property
    def num_layers(self) -> int:
        return len(self.projections)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device


def open_model(
    source: str,
    *,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    texts: int = 0,
    memory: float | None = None,
) -> OpenedModel:
    """Load a checkpoint folder or hub name and find its projections.

    ``dtype`` "auto" is float32 on a CPU, because bfloat16 blurs likelihoods (of some models, Gemma's, by as
    much as steering moves them), with gradients in bfloat16 where that loses nothing else and is fast
    (``narrow``); elsewhere the checkpoint's own. ``base_model`` is
    the name to record in personas; a local folder is recorded by its folder name, so that no path of this
    machine leaves it. A model that will not fit is refused before it is loaded: ``texts`` sentences' gradients
    are read, ``memory`` GB may be taken (``memory.refuse_too_large``).
    Raises InputError where the model cannot be opened, FitError where it cannot be steered.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    automatic = dtype == "auto"
    if automatic and device == "cpu":
        dtype = "float32"
    try:
        # trust_remote_code is off, not left out, or transformers asks whoever sits there: a checkpoint is
        # data here, never a program.
        refuse_too_large(source, device=device, dtype=dtype, texts=texts, limit=memory)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"--model {source}: cannot be opened as a causal language model: {first[0][:300]}. "
            "Give a Hugging Face name or a folder with config.json, a tokenizer and safetensors"
        ) from error
    name = base_model or (
        model_name(str(Path(source).resolve())) if Path(source).is_dir() else source
    )
    opened = wrap(model.to(device), tokenizer, base_model=name)
    # Who names a dtype gets it for everything.
    return replace(opened, gradient_dtype=narrower(model)) if automatic else opened


def wrap(model: Any, tokenizer: Any, *, base_model: str) -> OpenedModel:
    """Find the projections of a loaded ``model``. Raises FitError, naming what does not fit."""
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise FitError(f"{base_model}: is an encoder-decoder model; wanted a decoder-only one")
    num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
    found = find_projections(model)
    if [layer for layer, _ in found] != list(range(num_layers)):
        raise FitError(
            f"{base_model} ({type(model).__name__}): found attention output projections in layers "
            f"{[layer for layer, _ in found]}, wanted one in each of {num_layers}; this "
            "architecture cannot be steered head by head"
        )
    widths = {_in_features(module) for _, module in found}
    width = min(widths)
    head_dim = getattr(config, "head_dim", None) or width // num_heads
    if widths != {num_heads * head_dim}:
        raise FitError(
            f"{base_model} ({type(model).__name__}): output projections take {sorted(widths)} "
            f"inputs, wanted {num_heads} heads x head_dim {head_dim} = {num_heads * head_dim}"
        )
    return OpenedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        projections=tuple(module for _, module in found),
        num_heads=num_heads,
        head_dim=head_dim,
        base_model=base_model,
    )


def model_dtype(model: OpenedModel) -> str:
    """What the model computes in, such as "bfloat16", or "float32, gradients bfloat16"."""
    own = str(model.model.dtype).removeprefix("torch.")
    return f"{own}, gradients {model.gradient_dtype}" if model.gradient_dtype else own


def model_facts(model: OpenedModel) -> ModelFacts:
    """What a persona says of ``model``."""
    return ModelFacts(
        base_model=model.base_model,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        head_dim=model.head_dim,
        dtype=model_dtype(model),
    )


def find_projections(model: Any) -> list[tuple[int, Any]]:
    """(layer index, module) of every decoder self-attention output projection, in layer order."""
    found = []
    for path, module in model.named_modules():
        match = _PROJECTION.fullmatch(path)
        if match and not _OTHER_TOWER.search(path) and getattr(module, "weight", None) is not None:
            found.append((int(match.group(1)), module))
    return sorted(found, key=lambda pair: pair[0])


def _in_features(module: Any) -> int:
    """Width of a projection's input; GPT-2's Conv1D stores its weight transposed."""
    if hasattr(module, "in_features"):
        return int(module.in_features)
    return int(module.weight.shape[0 if type(module).__name__ == "Conv1D" else 1])
