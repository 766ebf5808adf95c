"""Pairs as data sets have them: columns, conversations without a prompt, and a few empty answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from palign_fit.errors import InputError
from palign_fit.inputs.pairs import Pair, Pairs, parse_pairs, read_pairs


def parsed(*records: Any) -> Pairs:
    return parse_pairs(io.BytesIO("\n".join(map(json.dumps, records)).encode()), "pairs")


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


PAIR = Pair((("user", "Hi"),), "Hello!", "Yes?")
ROW = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Yes?"}


def conversation(*contents: str) -> list[dict[str, Any]]:
    return [message(("user", "assistant")[n % 2], text) for n, text in enumerate(contents)]


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_columns_are_read_whatever_format_holds_them(kind: str, tmp_path: Path) -> None:
    texts = pa.table({**{name: [text] for name, text in ROW.items()}, "score": [[1, 2]]})
    asked = {**message("user", "Hi"), "tool_calls": None}
    messages = pa.Table.from_pylist(
        [
            {
                "chosen": [asked, message("assistant", "Hello!")],
                "rejected": [asked, message("assistant", "Yes?")],
            }
        ]
    )
    for table in (texts, messages):
        path = tmp_path / "pairs"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with path.open("wb") as sink, new(sink, table.schema) as writer:
                writer.write_table(table)
        assert read_pairs(path).pairs == (PAIR,)
    pq.write_table(texts, tmp_path / "pairs")
    assert read_pairs(tmp_path / "pairs").notes == (f"{tmp_path / 'pairs'}: not used: 'score'",)


def test_columns_that_are_no_pairs_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a"], "chosen": ["b"]}), tmp_path / "p")
    with pytest.raises(InputError, match="the columns are 'question, chosen', wanted prompt"):
        read_pairs(tmp_path / "p")


def test_without_prompt_both_conversations_begin_with_it() -> None:
    system = [message("system", "Be kind."), *conversation("Hi", "Yes?", "How are you?")]
    found = parsed(
        {"chosen": conversation("Hi", "Hello!"), "rejected": conversation("Hi", "Yes?")},
        {
            "prompt": None,
            "chosen": [*system, message("assistant", "Fine!")],
            "rejected": [*system, message("assistant", "Bad.")],
        },
    )
    prompt = (
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Yes?"),
        ("user", "How are you?"),
    )
    assert found.pairs == (PAIR, Pair(prompt, "Fine!", "Bad.")) and not found.notes


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": "Hello!", "rejected": "Yes?"}, "without prompt both must be lists of messages"),
        (
            {"chosen": conversation("Hi", "Yes"), "rejected": conversation("Ho", "No")},
            "do not begin with the same user's turn",
        ),
        (
            {"chosen": conversation("Hi", "Yes"), "rejected": conversation("Hi", "No", "So", "Yo")},
            "rejected is .* after the prompt, wanted one turn of the assistant",
        ),
        (
            {"chosen": conversation("Hi"), "rejected": conversation("Hi", "No")},
            r"chosen is \[\] after the prompt",
        ),
    ],
)  # fmt: skip
def test_what_has_no_prompt_and_no_common_beginning_is_refused(record: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"line 1: .*{reason}"):
        parsed(record)


@pytest.mark.parametrize("empty", ["", "  \n", None, [message("assistant", "")], [message("assistant", None)]])  # fmt: skip
@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_an_empty_answer_is_left_out_and_noted(name: str, empty: Any) -> None:
    found = parsed(ROW, {**ROW, "prompt": "b", name: empty}, {**ROW, "prompt": "c", name: empty})
    assert found.pairs == (PAIR,)
    (note,) = found.notes
    assert note.startswith("pairs: 2 pair(s) lack a text: left out, the first is line 2: " + name)


def test_a_file_of_empty_answers_alone_is_refused_and_says_where() -> None:
    with pytest.raises(InputError, match="none of 1 pairs prefers anything\n  - line 1: chosen is"):
        parsed({**ROW, "chosen": ""})


def test_a_table_as_text_is_no_pairs_file() -> None:
    data = b"prompt,chosen,rejected\nHi,Hello!,Yes?\n"
    with pytest.raises(InputError, match="not valid JSON: begins with 'p'"):
        parse_pairs(io.BytesIO(data), "pairs")
