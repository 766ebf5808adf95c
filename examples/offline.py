"""Offline batch inference with vLLM's own LLM class: each prompt with its own persona.

    python examples/offline.py MODEL NAME=PERSONA.safetensors [NAME=PERSONA.safetensors ...]

After `make demo`:
    python examples/offline.py .demo/SmolLM2-135M-Instruct alice=.demo/personas/alice.safetensors
"""

import os
import sys

os.environ["VLLM_PLUGINS"] = "palign"  # before the LLM is made
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams

from vllm_palign import persona_args


def main():
    model, personas = sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:])
    llm = LLM(model, max_model_len=512, additional_config={"palign": {"personas": personas}})
    messages = [
        {"role": "user", "content": "A friend invites you to a big party. How do you feel?"}
    ]
    wishes = [None, *personas, {"mix": dict.fromkeys(personas, 1 / len(personas)), "strength": 0.8}]
    params = [
        SamplingParams(
            temperature=0, max_tokens=40, extra_args=None if wish is None else persona_args(wish)
        )
        for wish in wishes
    ]
    for wish, output in zip(wishes, llm.chat([messages] * len(wishes), params), strict=True):
        print(f"--- {wish or 'plain'}\n{output.outputs[0].text}\n")


if __name__ == "__main__":
    main()
