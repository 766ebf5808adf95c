"""That they run and answer as the page does is seen in ``test_meet.py``."""

from __future__ import annotations

import ast
import json
import shlex

from vllm_palign.play.snippets import curl, python

BODY = {
    "model": "m", "messages": [{"role": "user", "content": "it's \"$HOME\" `x` \\ é\n"}], "seed": 1,
    "persona": {"id": "alice", "strength": 1.5},
}  # fmt: skip


def test_curl_sends_the_body_as_it_is() -> None:
    words = shlex.split(curl("http://u", BODY))
    assert json.loads(words[words.index("-d") + 1]) == BODY
    assert "Authorization: Bearer $PALIGN_API_KEY" in words


def test_python_passes_the_persona_where_the_openai_client_wants_it() -> None:
    call = next(
        node for node in ast.walk(ast.parse(python("http://u", BODY)))
        if isinstance(node, ast.Call) and any(word.arg == "extra_body" for word in node.keywords)
    )  # fmt: skip
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    assert given.pop("extra_body") == {"persona": BODY["persona"]}
    assert given == {name: value for name, value in BODY.items() if name != "persona"}
