"""The text that a server shows of tokens, by vLLM's own detokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace


class Detokenizer:
    """A token that ends within a character has no text: whoever completes the character brings it, and at the
    end of an answer nobody does. A decode of all tokens at once shows U+FFFD there, and text before it
    that the server withholds with it.
    """

    def __init__(self, tokenizer: Path, *, skip_special_tokens: bool) -> None:
        from transformers import AutoTokenizer
        from vllm import SamplingParams

        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._sampling = SamplingParams(skip_special_tokens=skip_special_tokens)

    def texts(self, prompt: Sequence[int], answer: Sequence[int]) -> list[str]:
        """What each token of ``answer`` adds to what is shown after ``prompt``."""
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        # All that it reads of a request.
        request = SimpleNamespace(
            request_id="judged",
            prompt_token_ids=list(prompt),
            prompt_embeds=None,
            sampling_params=self._sampling,
        )
        stream = IncrementalDetokenizer.from_new_request(self._tokenizer, request)
        texts = []
        for token in answer:
            stream.update([token], stop_terminated=False)
            texts.append(stream.get_next_output_text(finished=False, delta=True))
        return texts
