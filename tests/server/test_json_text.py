"""Members are where ``json.loads`` sees them, whatever the object holds and however it is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_palign.server import json_text
from vllm_palign.server.json_text import first_member, members, utf8, without

texts = st.text(max_size=8) | st.text(alphabet='"\\[]{},: \n', max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=30,
)


def nested(depth: int) -> Any:
    return {"a": [nested(depth - 1), '}"']} if depth else "]"


def check(text: bytes, value: dict[str, Any]) -> None:
    found = [*members(text)]
    assert [member.name for member in found] == [*value]
    for member in found:
        expected = json.dumps(value[member.name])
        assert json.dumps(json.loads(text[member.value : member.end])) == expected
        if len(found) > 1:
            start, end = without(text, member)
            rest = {name: item for name, item in value.items() if name != member.name}
            assert json.dumps(json.loads(text[:start] + text[end:])) == json.dumps(rest)
    at, more = first_member(text, 0)
    assert more == bool(found)
    added = text[:at] + b'"\\u0000new":1' + b"," * more + text[at:]
    assert json.dumps(json.loads(added)) == json.dumps({"\0new": 1, **value})


@settings(max_examples=500, deadline=None)
@given(
    value=st.dictionaries(texts, values, max_size=5),
    indent=st.sampled_from([None, 0, 3, "\t", "\r\n "]),
    ascii_only=st.booleans(),
    window=st.sampled_from([2, 3, 5, 16, 1 << 18]),
)
def test_members_are_where_json_sees_them(
    value: dict[str, Any], indent: Any, ascii_only: bool, window: int
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    before, json_text._WINDOW = json_text._WINDOW, window
    try:
        check(text.encode("utf-8", "surrogatepass"), value)
    finally:
        json_text._WINDOW = before


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7, 50])
def test_any_depth(depth: int) -> None:
    value = {"a": nested(depth), "persona": "alice", "b": [nested(depth)] * 3}
    check(json.dumps(value).encode(), value)


def test_a_depth_that_json_cannot_read_is_no_trouble() -> None:
    text = b'{"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b',"persona":1}'
    assert [member.name for member in members(text)] == ["x", "persona"]


@pytest.mark.parametrize("text", [b"", b" ", b"[]", b"1", b'"x"', b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":[', b'{"a":"',
    b'{"a":"\\"}', b'{"a":1,}', b"{a:1}", b'{"a" 1}', b'{"\xff":1}', b'{"\\x":1}', b'{"a":1 "b":2}'])  # fmt: skip
def test_what_is_no_object_raises(text: bytes) -> None:
    with pytest.raises(ValueError):
        [*members(text)]


def test_a_name_given_twice_is_there_twice() -> None:
    assert [member.name for member in members(b'{"a":1,"\\u0061":2}')] == ["a", "a"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_every_encoding_that_json_reads_becomes_utf8(encoding: str) -> None:
    value = {"persona": "älice\N{GRINNING FACE}", "x": "y" * 100}
    text = json.dumps(value, ensure_ascii=False)
    assert json.loads(text.encode(encoding)) == value
    before, json_text._WINDOW = json_text._WINDOW, 7
    try:
        assert utf8(text.encode(encoding)) == text.encode()
    finally:
        json_text._WINDOW = before
