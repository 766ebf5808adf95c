from __future__ import annotations

import copy
from typing import Any

from palign_fit.evaluation import texts
from palign_fit.model.prompts import chat_prefix, continuation


def test_a_turn_is_put_on_as_the_whole_conversation_would_be_rendered(tiny: Any) -> None:
    said, answer, user = "Tell me about yourself.", "I am calm.", "I enjoy long walks."
    for system in (None, "I am quiet."):
        whole = texts.conversation([(said, answer)], user, system)
        text = tiny.tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
        assert tiny.tokenizer(text, add_special_tokens=False)["input_ids"] == [
            *chat_prefix(tiny.tokenizer, said, system),
            *continuation(tiny.tokenizer, answer),
            *texts.next_turn(tiny.tokenizer, user, system),
        ]
    bare = copy.copy(tiny.tokenizer)
    bare.chat_template = None
    assert texts.next_turn(bare, user, None) == bare(f"Question: {user} Answer:")["input_ids"]
