"""Files as people have them: what a spreadsheet, a data frame or a download makes of a table."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Answers, form, parse_answers, read_answers
from palign_fit.inputs.inventory import parse_inventory, read_inventory
from palign_fit.inputs.pairs import read_pairs
from palign_fit.inputs.records import parse_records

INVENTORY = parse_inventory(
    "id,text,trait,facet,key\ni1,talk,E,f,+\ni2,hide,E,f,-\ni3,worry,N,f,+\n",
    source="inv",
    name="inv",
)


def parse(text: str) -> Answers:
    return parse_answers(text, INVENTORY, source="answers")


def rows(answers: Answers) -> dict[str, list[int]]:
    return dict(zip(answers.ids, answers.table.tolist(), strict=True))


# What is no file of ours, whichever it was given as

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (LFS, "is a Git LFS pointer, not the file itself; run git lfs pull"),
        (b"/annex/objects/SHA256E-s1048576--0a.csv", "git-annex pointer"),
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "a web page"),
        (b"\xef\xbb\xbf\r\n  <html lang='en'>", "a web page"),
        (b'<?xml version="1.0"?><Error>Access denied</Error>', "a web page (HTML or XML)"),
        (gzip.compress(b"id,i1\n", mtime=0), "gzip-compressed; unpack it first"),
        (bz2.compress(b"id,i1\n"), "bzip2-compressed"),
        (lzma.compress(b"id,i1\n"), "xz-compressed"),
        (b"PK\x03\x04", "a zip archive"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"$FL2@(#) SPSS DATA FILE", "an SPSS file"),
        (b"{\\rtf1\\ansi id,i1}", "RTF text"),
        ("id,i1\nann,4\n".encode("utf-16"), "UTF-16, not UTF-8 text"),
        ("id,i1\nann,4\n".encode("utf-16-le"), "holds NUL bytes, as UTF-16 does"),
        ("id,i1\nandré,4\n".encode("latin-1"), "is not UTF-8 text"),
        (b"\x70\x00\x00\x00\x00\x00\x00\x00" + b'{"__metadata__":{}}', "a safetensors file"),
        (pickle.dumps({"id": "ann"}), "holds NUL bytes"),
        (
            b"------WebKitForm\r\nContent-Disposition: form-data; name=file\r\n\r\nid,i1\n",
            "a form upload with its envelope",
        ),
    ],
)  # fmt: skip
def test_what_a_file_is_is_said_wherever_it_is_given(
    data: bytes, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    path.write_bytes(data)
    for reader in (lambda p: read_answers(p, INVENTORY), read_inventory, read_pairs):
        with pytest.raises(InputError) as error:
            reader(path)
        assert str(error.value).startswith(f"{path}: is ") and named in str(error.value)


def test_a_table_of_columns_is_no_inventory_and_says_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["q1"]}), tmp_path / "i.parquet")
    with pytest.raises(InputError, match="is a Parquet file; save it as CSV or JSON"):
        read_inventory(tmp_path / "i.parquet")


# CSV out of spreadsheets


@pytest.mark.parametrize(
    "text",
    [
        "id,i1,i3,,\nann,4,5,,\nben,1,2,,\n,,,,\n",
        "id,i1,i3\nann,4,5,,\nben,1,2,\n",
        "id,i1,i3,,\nann,4,5\nben,1,2\n",
        "id,,i1,i3\nann,,4,5\nben, ,1,2\n",
        "\ufeffid,i1,i3\r\nann,4,5\r\nben,1,2\r\n",
        "id,i1,i3\rann,4,5\rben,1,2\r",
        ' id ,"i1", i3\n ann ,4.0, 5\nben,"1",2\n',
    ],
)
def test_what_spreadsheets_leave_behind_is_no_answer(text: str) -> None:
    assert rows(parse(text)) == {"ann": [4, 0, 5], "ben": [1, 0, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,i1,\nann,4,5\n", "line 2: column 3 has no name and holds '5'"),
        (",id,i1\n0,ann,4\n", "column 1 has no name and holds '0'; .*row numbers"),
        ("id,i1\nann,4,5\n", "line 2: has 3 cells, wanted 2"),
        ("id,i1,i3\nann,4\n", "line 2: has 2 cells, wanted 3"),
        ("id;i1\nann;4\n", "'id;i1', by semicolons; wanted them separated by commas"),
        ("id\ti1\nann\t4\n", "by tabs; wanted them separated by commas"),
        ("sep=;\nid;i1\nann;4\n", "line 1: is a spreadsheet's 'sep=;'; leave it out"),
        ('id,i1\nann,"4,0"\n', "item 'i1' is '4,0', wanted 1 to 5"),
        ("id,i1,i1\nann,1,2\n", "line 1: column 'i1' is there twice"),
        ("id,i1\nann,4\nAnn,5\n", "id 'Ann' is there twice, first in line 2; capitals"),
        ("id,I1\nann,4\n", "item 'I1' is not in inventory 'inv', which has 'i1'"),
        ("id,i1\nan\x00n,4\n", "NUL bytes"),
        ("id,i1\n" + "x" * 600 + "\x00,4\n", "id is 'x"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_an_inventory_with_semicolons_or_empty_columns_is_told_as_well() -> None:
    with pytest.raises(InputError, match="by semicolons"):
        parse_inventory("id;text;trait;facet;key\nq1;hide;E;f;+\n", source="i", name="i")
    spare = "id,text,trait,facet,key,,\nq1,hide,E,f,+,,\n,,,,,,\n"
    assert [item.id for item in parse_inventory(spare, source="i", name="i").items] == ["q1"]


# The form


def filled(**answers: str) -> str:
    lines = [line.split(",") for line in form(INVENTORY).splitlines()]
    return "\n".join(",".join([*line[:-1], answers.get(line[0], line[-1])]) for line in lines)


def test_the_form_shows_every_statement_and_is_read_back() -> None:
    sheet = filled(id="ann", i1="4", i3="5")
    assert "i1,I talk.,4" in sheet
    for text in (
        sheet,
        sheet.replace(",", ";").replace("\n", "\r\n"),
        sheet.replace(",", "\t"),
        "\ufeff" + sheet.replace("\n", ",,\n"),
    ):
        assert rows(parse(text)) == {"ann": [4, 0, 5]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (filled(id="an n", i1="4"), "form: id is 'an n'"),
        (filled(id="ann", i1="7"), "form: item 'i1' is '7', wanted 1 to 5"),
        (filled(id="ann") + "\ni2,I hide.,3", "line 6: item 'i2' is there twice"),
        ("item,statement,answer\ni1,I talk.,4\n", "no line for item 'id'"),
        (filled(id="ann") + "\nzz,I fly.,3", "item 'zz' is not in inventory"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_a_form_is_as_long_as_an_inventory_may_be() -> None:
    lines = "".join(f"x{n},I do.,4\n" for n in range(3000))
    with pytest.raises(InputError, match="more than 2000 items"):
        parse(f"item,statement,answer\n{lines}")


def test_json_with_its_statements_is_read_back() -> None:
    sheet: dict[str, Any] = {"id": "ann", "statements": {"i1": "I talk."}, "answers": {"i1": 4}}
    assert rows(parse(json.dumps(sheet))) == {"ann": [4, 0, 0]}


# Codes for no answer


@pytest.mark.parametrize("code", [6, 9, 99, -1, -99, 999])
def test_a_code_for_no_answer_is_not_taken_for_a_scale(code: int) -> None:
    lines = [f"s{n},{1 + n % 5},{code if n % 3 == 0 else 4}" for n in range(12)]
    with pytest.raises(InputError) as error:
        parse("\n".join(["id,i1,i2", *lines]))
    message = str(error.value)
    assert f"only values off the scale are {code} (4 times)" in message
    assert "stand for no answer, leave these empty" in message
    assert "look like a scale" not in message.split("Else:")[0]


def test_several_codes_are_named_together_and_a_scale_stays_a_scale() -> None:
    with pytest.raises(InputError, match=r"8 \(once\) and 9 \(2 times\): if they stand for no"):
        parse("id,i1,i2\na,8,1\nb,9,2\nc,9,3\n")
    with pytest.raises(InputError) as error:
        parse("id,i1,i2\na,6,1\nb,7,2\n")
    assert "1 to 7" in str(error.value) and "no answer" not in str(error.value)


# Parquet and Arrow


def arrow_bytes(table: pa.Table, kind: str) -> bytes:
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink)
        return sink.getvalue()
    opened = (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema)
    with opened as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


KINDS = ["parquet", "file", "stream"]


@pytest.mark.parametrize("kind", KINDS)
def test_arrow_files_and_streams_are_read_like_parquet(kind: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["ann", "ben", "cy"],
            "i1": pa.array([4, None, 1], pa.int8()),
            "i3": pa.array([5.0, 2.0, None]),
            "__index_level_0__": [10, 11, 12],
        }
    )
    (tmp_path / "a.arrow").write_bytes(arrow_bytes(table, kind))
    wanted = {"ann": [4, 0, 5], "ben": [0, 0, 2], "cy": [1, 0, 0]}
    assert rows(read_answers(tmp_path / "a.arrow", INVENTORY)) == wanted
    assert rows(read_answers(tmp_path, INVENTORY)) == wanted


@given(st.data(), st.sampled_from(KINDS[1:]))
@limits(max_examples=150)
def test_no_broken_arrow_file_crashes_the_reader(data: Any, kind: str) -> None:
    table = pa.table({"id": ["ann", "ben"], "i1": pa.array([4, 1], pa.int8())})
    broken = bytearray(arrow_bytes(table, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(8, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(8, len(broken)))
    for damaged in (broken, broken[:cut]):
        try:
            list(parse_records(io.BytesIO(bytes(damaged)), "answers"))
        except InputError as error:
            assert "answers" in str(error)
