"""Exactness on the real engine: against plain Hugging Face, against stock vLLM, alone against in a batch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import UNIPROC, write_personas
from tests.oracle import first_steered, logprobs
from tests.personas import SMOLLM2
from tests.shown import Measured
from tests.warm import run_vllm
from vllm_palign import Persona, persona_args
from vllm_palign.plugin import register

TEXTS = (
    "It is Friday evening. What do you feel like doing?",
    "Tell me about yourself.",
    "A friend invites you to a big party. How do you feel about going there?",
    "Write one sentence about the sea.",
)
BOUND = 1e-4
NEW_TOKENS = 12

# Everything one LLM needs; also run in a process without the plugin, so that both are the same but for it.
STOCK = r"""
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM({model!r}, dtype={dtype!r}, enforce_eager=True, max_model_len=256, max_num_seqs=16, block_size=32, seed=0)
    params = SamplingParams(temperature=0, max_tokens={new}, logprobs=0, prompt_logprobs=0)
    result = []
    for batch in json.loads({batches!r}):
        outs = llm.generate([{{"prompt_token_ids": ids}} for ids in batch], params, use_tqdm=False)
        result.append([[list(out.outputs[0].token_ids),
            [list(lp.values())[0].logprob for lp in out.outputs[0].logprobs],
            [lp[token].logprob for lp, token in zip(out.prompt_logprobs[1:], out.prompt_token_ids[1:])]] for out in outs])
    print("\nRESULT " + json.dumps(result), flush=True)
"""


@dataclass
class Answer:
    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    cached: int

    @property
    def all(self) -> np.ndarray:
        return np.array([*self.prompt_logprobs, *self.logprobs])


@dataclass
class Engine:
    """One offline LLM with the plugin, its Hugging Face twin, and the prompts as tokens."""

    llm: Any
    reference: Any
    path: Path
    dtype: str
    personas: dict[str, Persona]
    prompts: list[list[int]]

    def ask(
        self,
        requests: Sequence[tuple[list[int], Any]],
        prompt_logprobs: bool = True,
        **options: Any,
    ) -> list[Answer]:
        """Greedy answers to (prompt tokens, persona or None), all in one batch."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=0,
                max_tokens=NEW_TOKENS,
                logprobs=0,
                prompt_logprobs=0 if prompt_logprobs else None,
                extra_args=None if persona is None else persona_args(persona),
                **options,
            )
            for _, persona in requests
        ]
        outs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in requests], params, use_tqdm=False
        )
        return [
            Answer(
                list(out.outputs[0].token_ids),
                [next(iter(entry.values())).logprob for entry in out.outputs[0].logprobs],
                [
                    entry[token].logprob
                    for entry, token in zip(
                        out.prompt_logprobs[1:], out.prompt_token_ids[1:], strict=True
                    )
                ]
                if prompt_logprobs
                else [],
                out.num_cached_tokens,
            )
            for out in outs
        ]

    def oracle(
        self,
        ids: list[int],
        answer: Answer,
        parts: Sequence[tuple[str, float]],
        start: int | None = None,
    ) -> np.ndarray:
        """The reference method's log-probabilities of everything, steered from ``start`` on; None: from the
        prompt's last token."""
        return logprobs(
            self.reference,
            [*ids, *answer.tokens],
            [(self.personas[name], scale) for name, scale in parts],
            len(ids) - 1 if start is None else start,
        )

    def stock(self, batches: list[list[list[int]]]) -> list[list[Answer]]:
        """The same engine in a process that has the package installed but the plugin not enabled."""
        code = STOCK.format(
            model=str(self.path), dtype=self.dtype, new=NEW_TOKENS, batches=json.dumps(batches)
        )
        return [
            [Answer(*answer, cached=0) for answer in batch]
            for batch in run_vllm(code, VLLM_PLUGINS=None, VLLM_ENABLE_V1_MULTIPROCESSING="0")
        ]


def make_engine(path: Path, dtype: str, folder: Path, personas: dict[str, Persona]) -> Engine:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    os.environ["VLLM_PLUGINS"] = "palign"
    from vllm import LLM

    # vLLM loads its plugins once a process; another test may have made it do so before palign was on.
    register()

    files = {name: str(folder / f"{name}.safetensors") for name in personas}
    llm = LLM(
        str(path), dtype=dtype, enforce_eager=True, max_model_len=256, max_num_seqs=16, block_size=32,
        seed=0, additional_config={"palign": {"personas": files}}, distributed_executor_backend=UNIPROC,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for text in TEXTS
    ]
    # Against float32 the reference computes in float64: its own rounding, which differs from CPU to CPU,
    # is then no part of the difference.
    exact = torch.float64 if dtype == "float32" else getattr(torch, dtype)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=exact).eval()
    return Engine(llm, reference, path, dtype, personas, prompts)


def running(engine: Engine) -> Iterator[Engine]:
    yield engine
    # At interpreter exit vLLM would log into streams that pytest has closed.
    engine.llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def smol(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("oracle")
    # Weak enough that the model still speaks: a ruined model saturates and hides differences.
    yield from running(
        make_engine(demo_model, "float32", folder, write_personas(folder, 8, SMOLLM2, scale=0.03))
    )


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tiny_personas: tuple[Path, dict[str, Persona]]) -> Iterator[Engine]:
    yield from running(make_engine(tiny_model, "float32", *tiny_personas))


CASES: list[tuple[Any, list[tuple[str, float]]]] = [
    (None, []),
    ("p0", [("p0", 1.0)]),
    ({"id": "p1", "strength": 1.7}, [("p1", 1.7)]),
    ({"id": "p2", "strength": -0.9}, [("p2", -0.9)]),
    ({"id": "p3", "strength": 0}, []),
    ({"id": "p4", "scope": "all"}, [("p4", 1.0)]),
    ({"mix": {"p0": 0.7, "p1": 0.3}}, [("p0", 0.7), ("p1", 0.3)]),
    ({"mix": {"p0": 0.7, "p2": 0.3}, "scope": "all"}, [("p0", 0.7), ("p2", 0.3)]),
    (
        # No stronger: what a strong blend ruins magnifies rounding, on CPUs without AVX-512 beyond the bound.
        {"mix": {"p2": 1.2, "p3": -0.4, "p4": 0.1}, "strength": -0.75},
        [("p2", -0.9), ("p3", 0.3), ("p4", -0.075)],
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            "smol",
            marks=pytest.mark.shows(
                "features",
                "real weights",
                model="SmolLM2",
                note="SmolLM2-135M-Instruct, chosen tokens",
            ),
        ),
        "tiny",
    ],
)
def test_logprobs_equal_the_reference_method_in_hugging_face(
    model: str, case: int, request: pytest.FixtureRequest, measured: Measured
) -> None:
    engine: Engine = request.getfixturevalue(model)
    persona, parts = CASES[case]
    worst: dict[str, float] = {}
    for ids in engine.prompts[:2]:
        (answer,) = engine.ask([(ids, persona)])
        start = first_steered(persona, ids)
        difference = np.abs(answer.all - engine.oracle(ids, answer, parts, start)).max()
        worst["error"] = max(float(difference), worst.get("error", 0.0))
        if parts:  # and the reference itself says that steering changed something
            effect = float(np.abs(answer.all - engine.oracle(ids, answer, [])).max())
            worst["effect"] = min(effect, worst.get("effect", effect))
    measured(worst)
    assert worst["error"] <= BOUND
    assert worst.get("effect", 1.0) > 100 * BOUND


@pytest.fixture(scope="module")
def stock(smol: Engine) -> list[list[Answer]]:
    """Stock vLLM's answers: each prompt alone, then the 16 of the mixed batch together."""
    return smol.stock([*([ids] for ids in smol.prompts), [smol.prompts[i % 4] for i in range(16)]])


def test_strength_zero_and_no_persona_equal_stock_vllm_bit_for_bit(
    smol: Engine, stock: list[list[Answer]]
) -> None:
    for ids, (plain,) in zip(smol.prompts, stock[:-1], strict=True):
        for persona in (None, {"id": "p0", "strength": 0}, {"mix": {"p1": 0, "p2": 0}}):
            (answer,) = smol.ask([(ids, persona)])
            assert answer.tokens == plain.tokens
            assert answer.logprobs == plain.logprobs
            assert answer.prompt_logprobs == plain.prompt_logprobs


MIXED: list[Any] = [
    None, "p0", {"id": "p1", "strength": 0.5, "scope": "all"}, "p2", None,
    {"id": "p3", "strength": -1}, {"id": "p4", "scope": "all"}, {"mix": {"p5": 0.5, "p6": 0.5}}, None,
    {"id": "p7", "scope": "all"}, {"id": "p0", "strength": 2}, None, "p1",
    {"id": "p2", "strength": -0.3}, {"mix": {"p7": 1.0, "p0": -1.0}, "scope": "all"}, None,
]  # fmt: skip


def test_a_mixed_batch_of_16_answers_each_as_alone_and_plain_ones_as_stock(
    smol: Engine, stock: list[list[Answer]]
) -> None:
    requests = [(smol.prompts[index % 4], persona) for index, persona in enumerate(MIXED)]
    together = smol.ask(requests)
    for (ids, persona), answer, plain in zip(requests, together, stock[-1], strict=True):
        (alone,) = smol.ask([(ids, persona)])
        assert answer.tokens == alone.tokens
        assert np.abs(answer.all - alone.all).max() <= BOUND
        if persona is None:
            assert answer.tokens == plain.tokens
            assert (answer.all == plain.all).all()
        elif isinstance(persona, dict) and persona.get("scope") == "all":
            moved = np.abs(np.array(answer.prompt_logprobs) - plain.prompt_logprobs).max()
            assert moved > 10 * BOUND
        else:
            assert answer.prompt_logprobs == plain.prompt_logprobs, "computed as without a persona"
            assert answer.logprobs != plain.logprobs


def test_under_scope_all_the_same_persona_reuses_kv_and_any_other_does_not(smol: Engine) -> None:
    ids = (smol.prompts[0] * 4)[:100]
    smol.llm.reset_prefix_cache()

    def cached(persona: Any) -> int:
        if isinstance(persona, dict) and persona.get("strength") != 0:
            persona = {**persona, "scope": "all"}
        return smol.ask([(ids, persona)], prompt_logprobs=False)[0].cached

    different = [
        None,
        {"id": "p0"},
        {"id": "p1"},
        {"id": "p0", "strength": 1.5},
        {"id": "p0", "strength": -1.0},
        {"mix": {"p0": 0.5, "p1": 0.5}},
    ]
    assert [cached(persona) for persona in different] == [0] * len(different)
    same = [
        None,
        {"mix": {"p0": 1.0}},
        {"id": "p1"},
        {"mix": {"p0": 1.0}, "strength": 1.5},
        {"id": "p0", "strength": -1},
        {"mix": {"p1": 0.5, "p0": 0.5}},
    ]
    assert all(cached(persona) > 0 for persona in same)
    assert cached({"id": "p3", "strength": 0}) > 0, (
        "strength 0 has the effect of no persona: stock KV"
    )


def test_answers_with_prefix_cache_equal_answers_without(smol: Engine) -> None:
    ids = (smol.prompts[2] * 4)[:90]
    for persona in (None, "p0", {"id": "p1", "strength": -0.7}):
        smol.llm.reset_prefix_cache()
        (cold,) = smol.ask([(ids, persona)], prompt_logprobs=False)
        (warm,) = smol.ask([(ids, persona)], prompt_logprobs=False)
        assert cold.cached == 0
        assert warm.cached > 0
        assert warm.tokens == cold.tokens
        assert np.abs(warm.all - cold.all).max() <= BOUND


def test_a_clients_own_salt_still_keeps_its_kv_apart(smol: Engine) -> None:
    from vllm import SamplingParams

    ids = (smol.prompts[1] * 5)[:100]
    smol.llm.reset_prefix_cache()

    def cached(salt: str | None, persona: Any) -> int:
        params = SamplingParams(max_tokens=1, extra_args=persona_args(persona) if persona else None)
        prompt = {"prompt_token_ids": ids, **({"cache_salt": salt} if salt else {})}
        return int(smol.llm.generate([prompt], params, use_tqdm=False)[0].num_cached_tokens)

    everywhere = {"id": "p0", "scope": "all"}
    for salt, persona in (
        ("mine", everywhere),
        ("yours", everywhere),
        ("mine", None),
        (None, "p0"),
    ):
        assert cached(salt, persona) == 0
        assert cached(salt, persona) > 0
    # The plain part of the prompt is the client's own plain one's.
    assert cached("mine", "p1") > 0
    assert cached("theirs", "p1") == 0


def test_sampling_params_can_be_reused_and_are_not_changed(tiny: Engine) -> None:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=3, temperature=0, extra_args=persona_args("p0"))
    before = dict(params.extra_args)
    prompts = [{"prompt_token_ids": ids} for ids in tiny.prompts]
    first = [out.outputs[0].token_ids for out in tiny.llm.generate(prompts, params, use_tqdm=False)]
    assert params.extra_args == before
    again = [out.outputs[0].token_ids for out in tiny.llm.generate(prompts, params, use_tqdm=False)]
    assert first == again


def test_every_sample_of_n_is_steered(tiny: Engine) -> None:
    from vllm import SamplingParams

    def samples(persona: str | None) -> list[Any]:
        params = SamplingParams(
            max_tokens=6, temperature=1.0, seed=3, n=4, logprobs=0,
            extra_args=persona_args(persona) if persona else None,
        )  # fmt: skip
        (out,) = tiny.llm.generate([{"prompt_token_ids": tiny.prompts[0]}], params, use_tqdm=False)
        return list(out.outputs)

    ids = tiny.prompts[0]
    for sample in samples("p0"):
        tokens = list(sample.token_ids)
        got = np.array([next(iter(entry.values())).logprob for entry in sample.logprobs])
        start = len(ids) - 1
        wanted = logprobs(tiny.reference, [*ids, *tokens], [(tiny.personas["p0"], 1.0)], start)
        assert np.abs(got - wanted[start:]).max() <= BOUND


def test_an_unknown_persona_raises_before_anything_runs(tiny: Engine) -> None:
    from vllm_palign import PersonaInvalid, PersonaNotFound

    with pytest.raises(PersonaNotFound):
        tiny.ask([(tiny.prompts[0], None), (tiny.prompts[0], "nobody")])
    with pytest.raises(PersonaInvalid):
        tiny.ask([(tiny.prompts[0], {"id": "p0", "strength": 3.5})])
    (after,) = tiny.ask([(tiny.prompts[0], "p0")])
    assert after.tokens


@pytest.fixture
def half(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("bfloat16")
    personas = write_personas(folder, 2, SMOLLM2, scale=0.05)
    yield from running(make_engine(demo_model, "bfloat16", folder, personas))


def test_bfloat16_is_as_near_to_float32_as_hugging_faces_own_bfloat16(
    half: Engine, demo_model: Path
) -> None:
    """Like with like, on the same tokens of the same steered text: steered text is less likely than plain
    text, and how far two bfloat16 kernels differ on it depends on the processor."""
    import torch
    from transformers import AutoModelForCausalLM

    exact = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    for ids in half.prompts:
        for name in ("p0", "p1"):
            (answer,) = half.ask([(ids, name)])
            parts = [(half.personas[name], 1.0)]
            truth = logprobs(exact, [*ids, *answer.tokens], parts, len(ids) - 1)
            ours.append(np.abs(answer.all - truth))
            theirs.append(np.abs(half.oracle(ids, answer, [(name, 1.0)]) - truth))
    mean = [float(np.concatenate(rows).mean()) for rows in (ours, theirs)]
    # Nineteen of twenty: the largest of all is one token's, and which one depends on the processor.
    tail = [float(np.quantile(np.concatenate(rows), 0.95)) for rows in (ours, theirs)]
    print(f"bfloat16 |dlogprob| ours {mean[0]:.4f} {tail[0]:.4f}, HF {mean[1]:.4f} {tail[1]:.4f}")
    assert mean[0] <= 1.5 * mean[1]
    assert tail[0] <= 1.5 * tail[1]
