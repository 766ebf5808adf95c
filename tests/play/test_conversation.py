from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tests.play.conftest import in_thread
from vllm_palign.play.client import Piece, Trouble
from vllm_palign.play.conversation import Conversation, Sampling, Turn, Wish, ask


class Fake:
    """Says a word every hundredth of a second, or fails, as the body's ``model`` tells it."""

    def __init__(self) -> None:
        self.open = 0

    async def chat(self, key: str, body: Mapping[str, Any]) -> AsyncIterator[Piece]:
        self.open += 1
        try:
            yield Piece(header="h")
            for number in range(20):
                await asyncio.sleep(0.01)
                if body["model"] == "fails" and number == 3:
                    raise Trouble("It failed.")
                if body["model"] == "breaks":
                    raise KeyError("delta")
                if body["model"] == "silent":
                    break
                yield Piece(text=f"{number} ")
            yield Piece(tokens=40)
        finally:
            self.open -= 1


async def asked(*models: str, stop_after: int | None = None) -> tuple[list[Turn], Fake, int]:
    server, stop, frames = Fake(), asyncio.Event(), 0
    turns = [Turn("q") for _ in models]
    bodies = [{"model": model} for model in models]
    async for _ in ask(server, "", list(zip(turns, bodies, strict=True)), stop):  # type: ignore[arg-type]
        frames += 1
        if frames == stop_after:
            stop.set()
    return turns, server, frames


def test_one_that_fails_keeps_its_trouble_to_itself() -> None:
    (good, bad), server, frames = in_thread(asked("good", "fails"))
    assert good.text.split()[-1] == "19" and good.tokens == 40 and not good.trouble
    assert bad.figures() == "It failed." and server.open == 0 and frames > 2
    assert good.rate and good.first is not None and good.first < good.seconds


def test_an_answer_without_a_word_and_one_that_cannot_be_read_are_said_so() -> None:
    (silent, broken), _, _ = in_thread(asked("silent", "breaks"))
    assert silent.figures().endswith("answered without a word") and not silent.trouble
    assert broken.figures() == "The page could not read this answer (KeyError)."


def test_stop_ends_all_of_them_and_their_requests() -> None:
    turns, server, _ = in_thread(asked("good", "good", stop_after=1))
    assert all(turn.stopped and not turn.running for turn in turns) and server.open == 0
    assert all(turn.text.split() != [str(n) for n in range(20)] for turn in turns)


def test_a_conversation_sends_what_was_answered_and_leaves_out_what_failed() -> None:
    said = Conversation(
        [Turn("one", "yes"), Turn("two", trouble="no"), Turn("three", "half", trouble="broke off")]
    )
    body = said.request("m", "four", Wish(), Sampling(seed=5))
    assert [message["content"] for message in body["messages"]] == ["one", "yes", "four"]
    assert body["seed"] == 5 and "persona" not in body
    assert [message["content"] for message in said.shown()] == [
        "one",
        "yes",
        "two",
        "three",
        "half",
    ]


def test_a_wish_is_the_requests_persona() -> None:
    assert Wish().field() is None
    assert Wish({"a": 1.0}, -1.5).field() == {"id": "a", "strength": -1.5}
    assert Wish({"a": 0.7, "b": -0.30000001}, 2.0, "all").field() == {
        "mix": {"a": 0.7, "b": -0.3}, "strength": 2.0, "scope": "all",
    }  # fmt: skip
