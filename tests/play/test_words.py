from __future__ import annotations

import pytest

from vllm_palign.play.words import applied, expectation, no_answer, refusal


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "plain: nothing was steered"),
        ("alice@0123;strength=1.5;scope=answers", "alice (0123) at strength 1.5, answers steered"),
        ("a@1*0.7+b.c-d@2*-0.3;strength=-1.0;scope=all",
         "0.7 × a (1) + −0.3 × b.c-d (2) at strength −1, prompt and answers steered"),
        ("what a later release says", "what a later release says"),
    ],
)  # fmt: skip
def test_the_reply_header_in_words(header: str | None, words: str) -> None:
    assert applied(header) == words


@pytest.mark.parametrize(
    ("status", "code", "message", "has_key", "words"),
    [
        (401, "invalid_api_key", "x", True, "does not know this API key"),
        (401, "invalid_api_key", "x", False, "wants an API key"),
        (403, "persona_forbidden", "this API key does not have the role 'manage'", True, "may ask personas, not"),
        (403, "persona_forbidden", "quota reached", True, "Quota reached."),
        (404, "persona_not_found", "there is no persona 'x' on this server", True, "There is no persona 'x'"),
        (404, "not_found", "x", True, "does not offer this"),
        (400, "persona_invalid", "strength: 1 x a at strength 4 amounts to 4, this server allows at most 2.5 (--x)", True,
         "Too strong: this amounts to 4, and the server allows at most 2.5."),
        (400, "persona_invalid", "strength: 1 x a at strength 2 amounts to 2 for persona 'a', whose file allows at most "
         "1.5 (x)", True, "Too strong: this amounts to 2 for a, and its file allows at most 1.5."),
        (400, "", "", True, "refused this (400)"),
        (501, "directions_missing", "x", True, "makes no personas from answers"),
        (503, "registry_unavailable", "x", True, "cannot look personas up"),
        (500, "", "", True, "failed (500)."),
    ],
)  # fmt: skip
def test_errors_are_sentences(
    status: int, code: str, message: str, has_key: bool, words: str
) -> None:
    said = refusal(status, code, message, has_key=has_key)
    assert words in said and said[0].isupper() and said.endswith((".", ")"))


def test_a_server_that_breaks_off_is_told_from_one_that_never_answered() -> None:
    assert "broke off" in no_answer("u", begun=True) and "does not answer" in no_answer("u")


def test_what_a_new_persona_lets_one_expect() -> None:
    fit = {
        "expected_alignment": 0.21,
        "weak": True,
        "warnings": ["weak: could be chance", "answers may lose fluency"],
    }
    said = list(expectation({"fit": fit}))
    assert said[0].startswith("Expected alignment 0.21") and "weak" in said[1]
    assert said[2:] == ["Answers may lose fluency."]
    sliders = list(expectation({"fit": {**fit, "sliders": {"E": 1.0}}}))
    assert "stranger" in said[1] and "chance" in sliders[1]
    assert list(expectation({"fit": {}})) == []
    assert list(expectation({"fit": {"warnings": 5, "alignment": "x"}})) == []
