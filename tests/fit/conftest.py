"""A tiny random Llama with a word-level tokenizer: fits run in a second on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from palign_fit.fit import open_fitter
from palign_fit.inputs import traits
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.inventory import built_in
from palign_fit.methods.palign.sentences import denied, statements
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.model import prompts
from palign_fit.model.cache import Cache, ModelCache
from palign_fit.model.model import OpenedModel

from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import Persona

# A loaded machine is slow, not wrong; the same examples every run.
settings.register_profile("fit", deadline=None, derandomize=True)
settings.load_profile("fit")

LAYERS, HEADS, HEAD_DIM = 3, 4, 16
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def words() -> list[str]:
    """Every word and mark the fit's own texts are made of."""
    from tokenizers.pre_tokenizers import Whitespace

    texts = [*prompts.OPENINGS, prompts.NEUTRAL_TEXT, prompts.OPTION_PROMPT, "I am Question Answer"]
    texts += [word for poles in traits.ADJECTIVES.values() for word in poles]
    for item in (*statements(), *built_in().items):
        texts += [item.text, denied(item.text)]
    split = Whitespace()
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """heads x head_dim is 64, hidden size 48; grouped-query attention; float32."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("fit") / "tiny-fit"
    special = ["[UNK]", "<user>", "<assistant>", "<end>"]
    vocabulary = {word: place for place, word in enumerate([*special, *words()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).float().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Any:
    from palign_fit.model.model import open_model

    return open_model(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where fits keep what no subject changes, instead of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(path))
        yield path / "palign-fit"


@pytest.fixture(scope="session")
def kept(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelCache:
    """For fits of ``tiny`` by tests that are not about what a fit computes anew: read once, kept bit for bit."""
    return ModelCache.of(tiny, Cache(tmp_path_factory.mktemp("kept")))


@pytest.fixture(scope="session")
def inventory() -> Inventory:
    return built_in()


def answer_sheet(inventory: Inventory, seed: int, missing: int = 0) -> dict[str, int | None]:
    """Random answers to every item, the first ``missing`` left out."""
    values = np.random.default_rng(seed).integers(1, 6, len(inventory.items))
    return {
        item.id: None if place < missing else int(value)
        for place, (item, value) in enumerate(zip(inventory.items, values, strict=True))
    }


@pytest.fixture
def answers_file(inventory: Inventory, tmp_path: Path) -> Path:
    """One random subject, "ann", two answers missing."""
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"id": "ann", "answers": answer_sheet(inventory, 1, missing=2)}))
    return path


def fit_personas(
    model: OpenedModel,
    inventory: Inventory,
    subjects: Sequence[Subject],
    settings: Settings,
    kept: ModelCache | None = None,
) -> Iterator[Persona]:
    """One persona a subject, in order; what the model is needed for is computed once for all."""
    for subject in subjects:
        check_subject(subject)
    used = np.any([np.isfinite(subject.agreement) for subject in subjects], axis=0)
    fitter = open_fitter(model, inventory, used, settings, kept)
    for subject in subjects:
        yield fitter.fit(subject)
