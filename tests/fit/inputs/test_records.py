"""Answers files on disk: every form means the same, none is loaded whole, none crashes the reader."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from palign_fit.errors import InputError
from palign_fit.inputs import jsons
from palign_fit.inputs.answers import Answers, read_answers
from palign_fit.inputs.inventory import parse_inventory
from palign_fit.inputs.records import parse_records, read_records

from vllm_palign.directions.inventory import Inventory, Item

INVENTORY = parse_inventory(
    "id,text,trait,facet,key\ni1,talk,E,f,+\ni2,hide,E,f,-\ni3,worry,N,f,+\n",
    source="inv",
    name="inv",
)
PAPI = Inventory(
    "ipip", tuple(Item(f"i{n}", f"do thing {n}", "OCEAN"[n % 5], "f", 1 - 2 * (n % 2)) for n in range(1, 301))
)  # fmt: skip
ROWS = [("ann", [4, None, 1]), ("ben", [None, 3, 5])]


def read(path: Path, inventory: Inventory = INVENTORY) -> Answers:
    return read_answers(path, inventory)


def as_rows(answers: Answers) -> list[tuple[str, list[int | None]]]:
    return [
        (name, [int(v) or None for v in row])
        for name, row in zip(answers.ids, answers.table, strict=True)
    ]


def as_objects(rows: list[tuple[str, list[int | None]]]) -> list[dict[str, Any]]:
    return [
        {"id": name, "answers": dict(zip(["i1", "i2", "i3"], values, strict=True))}
        for name, values in rows
    ]


def wide(rows: list[tuple[str, list[Any]]], **kinds: Any) -> pa.Table:
    columns: dict[str, Any] = {"id": [name for name, _ in rows]}
    for place, item in enumerate(("i1", "i2", "i3")):
        columns[item] = pa.array([values[place] for _, values in rows], **kinds)
    return pa.table(columns)


def write(rows: list[tuple[str, list[int | None]]], form: str, path: Path) -> None:
    objects = as_objects(rows)
    if form == "list":
        path.write_text(json.dumps(objects))
    elif form == "pretty":
        path.write_text(json.dumps(objects, indent=2), encoding="utf-8-sig")
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, objects)))
    elif form == "csv":
        cells = ["" if v is None else str(v) for _, values in rows for v in values]
        lines = [
            f"{name}," + ",".join(cells[3 * n : 3 * n + 3]) for n, (name, _) in enumerate(rows)
        ]
        path.write_text("id,i1,i2,i3\r\n" + "\r\n".join(lines), encoding="utf-8-sig")
    elif form == "wide":
        pq.write_table(wide(rows, type=pa.int8()), path)
    elif form == "wide-floats":
        pq.write_table(wide(rows, type=pa.float64()), path)
    else:
        answers: Any = [one["answers"] for one in objects]
        if form == "text":
            answers = [json.dumps(one) for one in answers]
        elif form == "map":
            pairs = [[(k, v) for k, v in one.items()] for one in answers]
            answers = pa.array(pairs, pa.map_(pa.string(), pa.int64()))
        pq.write_table(pa.table({"id": [name for name, _ in rows], "answers": answers}), path)


FORMS = ["list", "pretty", "jsonl", "csv", "wide", "wide-floats", "struct", "text", "map"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_the_same_whatever_the_file_is_called(form: str, tmp_path: Path) -> None:
    write(ROWS, form, tmp_path / "answers")
    assert as_rows(read(tmp_path / "answers")) == ROWS


sheets = st.lists(st.none() | st.integers(1, 5), min_size=3, max_size=3)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)


@given(st.lists(st.tuples(names, sheets), min_size=1, max_size=9, unique_by=lambda r: r[0].lower()))
@limits(max_examples=25)
def test_whatever_is_written_is_read_back_by_every_reader(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[int | None]]]
) -> None:
    path = tmp_path_factory.mktemp("forms") / "answers"
    for form in FORMS:
        write(rows, form, path)
        assert as_rows(read(path)) == rows


def test_a_map_of_anything_but_item_names_is_refused(tmp_path: Path) -> None:
    answers = pa.array([[(1, 5)]], pa.map_(pa.int64(), pa.int64()))
    pq.write_table(pa.table({"id": ["a"], "answers": answers}), tmp_path / "p")
    with pytest.raises(InputError, match="column 'answers' is of type map<int64"):
        read(tmp_path / "p")


@pytest.fixture(scope="module")
def parquet_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("parquet") / "p"
    write(ROWS, "wide", path)
    return path.read_bytes()


@given(st.data())
@limits(max_examples=150)
def test_no_broken_parquet_file_crashes_the_reader(parquet_bytes: bytes, data: Any) -> None:
    broken = bytearray(parquet_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(4, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(broken)))
    for one in (broken, b"PAR1" + bytes(broken[:cut])):
        try:
            list(parse_records(io.BytesIO(bytes(one)), "answers"))
        except InputError as error:
            assert "answers" in str(error)


@given(st.binary(max_size=60), st.sampled_from([b"", b"[", b"{", b"id,i1\n", b"\xef\xbb\xbf["]))
def test_no_bytes_crash_the_reader(data: bytes, start: bytes) -> None:
    try:
        list(parse_records(io.BytesIO(start + data), "answers"))
    except InputError as error:
        assert "answers" in str(error)


@given(st.lists(st.tuples(names, sheets), min_size=1, max_size=6, unique_by=lambda r: r[0].lower()))
def test_the_window_of_the_json_reader_is_not_seen(
    rows: list[tuple[str, list[int | None]]],
) -> None:
    """A window of 3 characters cuts every token; what comes out is what json.loads gives."""
    objects = as_objects(rows)
    before = jsons.WINDOW
    jsons.WINDOW = 3
    try:
        for text in (json.dumps(objects, indent=1), "\n".join(map(json.dumps, objects))):
            found = parse_records(io.BytesIO(text.encode()), "answers")
            assert [one.value for one in found] == objects
    finally:
        jsons.WINDOW = before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1},]', "not valid JSON"),
        ('[{"id": 1} {"id": 2}]', "wanted a comma"),
        ('[{"id": 1}', "the list has no end"),
        ('[{"id": 1}] x', "more text after the list"),
        ('{"id": 1} {"id": 2}', "wanted a new line"),
        ('{"id": 1}\n{"id": 2', "line 2: is not valid JSON"),
        ('[{"id": 1, "id": 2}]', "'id' is there twice"),
        ('[{"id": NaN}]', "NaN is not JSON"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_json_is_refused_where_it_breaks(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(parse_records(io.BytesIO(text.encode()), "answers"))


def test_a_record_without_an_end_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsons, "WINDOW", 100)
    monkeypatch.setattr(jsons, "MAX_RECORD", 1000)
    with pytest.raises(InputError, match="no whole record within 1000"):
        list(parse_records(io.BytesIO(b'[{"id": "' + b"x" * 5000), "answers"))
    with pytest.raises(InputError, match="line of more than"):
        list(parse_records(io.BytesIO(b"id,i1" + b"1" * (2 << 20)), "answers"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"x", mtime=0), "gzip-compressed"),
        (b"PK\x03\x04", "zip archive"),
        (b"\xff\xfe[\x00", "not UTF-8"),
        (b"i1,i2\n1,2\n", "no id column"),
        (b"id;i1\nx;2\n", "separated by commas"),
    ],
)
def test_what_is_no_answers_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"i1": [1, 2]}, "no id column"),
        ({"id": ["a", "b"], "i1": [True, False]}, "'True', wanted 1 to 5"),
        ({"id": ["a", "b"], "i1": ["4", "3"]}, "'4', wanted 1 to 5"),
        ({"id": ["a", "b"], "i1": [float("nan"), 3]}, "'nan', wanted 1 to 5"),
        ({"id": ["a", "b"], "i1": [2.5, 3]}, "'2.5', wanted 1 to 5"),
        ({"id": ["a", "b"], "zz": [1, 3]}, "'zz' is not in inventory"),
        ({"id": ["a", "b"], "i1": [[1], [3]]}, "is of type list"),
        ({"id": ["a", "a"], "i1": [1, 3]}, "is there twice"),
        ({"id": ["a", "b"], "answers": ["{}", '{"i1": 1, "i1": 2}']}, "is there twice"),
        ({"id": ["a", "b"], "i1": [60, 100]}, "0 to 100"),
    ],
)
def test_bad_parquet_columns_are_refused(columns: Any, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.parquet")


def test_numbers_as_ids_of_a_table_are_names(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [7, 8], "i1": [1, 2]}), tmp_path / "a")
    assert read(tmp_path / "a").ids == ("7", "8")


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ROWS, "wide", tmp_path / "a")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"vllm-palign\[parquet\]"):
        read(tmp_path / "a")


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write(ROWS[:1], "csv", tmp_path / "a.csv")
    write(ROWS[1:], "wide", tmp_path / "b.parquet")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".hidden.json").write_text("{")
    found = read(tmp_path)
    assert as_rows(found) == ROWS
    assert [note for note in found.notes if "README.md" in note]
    write(ROWS[:1], "jsonl", tmp_path / "c.jsonl")
    with pytest.raises(InputError, match=r"c\.jsonl: line 1: id 'ann' is there twice"):
        read(tmp_path)
    with pytest.raises(InputError, match="without answers files"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from palign_fit.inputs.records import read_records\n"
        "print([r.value['id'] for r in read_records(Path('/dev/stdin'))])"
    )
    given = json.dumps(as_objects(ROWS)).encode()
    done = subprocess.run(
        [sys.executable, "-c", code], input=given, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "['ann', 'ben']"


def papi_record(case: int | None, values: list[int]) -> dict[str, Any]:
    start = {} if case is None else {"case": case}
    return start | {"sex": 1, "age": 20, "country": "X"} | {
        f"i{n}": value for n, value in enumerate(values, 1)
    }  # fmt: skip


@pytest.mark.parametrize("form", ["list", "csv", "parquet"])
def test_files_of_papi_are_recognised_and_turned_back(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (3, 300)).tolist()
    records = [papi_record(100 + n, row) for n, row in enumerate(values)]
    path = tmp_path / "downloaded"
    if form == "list":
        path.write_text(json.dumps(records, indent=4))
    elif form == "csv":
        lines = [",".join(map(str, one.values())) for one in records]
        path.write_text("\n".join([",".join(records[0]), *lines]))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    found = read(path, PAPI)
    assert found.ids == ("100", "101", "102")
    for place, item in enumerate(PAPI.items):
        for row in range(3):
            score = values[row][place]
            assert found.table[row, place] == (6 - score if score and item.sign < 0 else score)
    assert "6 - score" in found.notes[0]


def test_papi_needs_its_own_inventory_and_a_part_of_it_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([papi_record(None, [3] * 300), papi_record(None, [4] * 300)]))
    part = Inventory("part", PAPI.items[5:9])
    found = read(path, part)
    assert found.ids == ("row-1", "row-2") and found.table.shape == (2, 4)
    assert "4 of its 300 items" in found.notes[0]
    other = Inventory("own", (Item("q1", "talk", "E", "f", 1),))
    with pytest.raises(InputError, match="IPIP-NEO-300"):
        read(path, other)


@pytest.mark.parametrize(
    "bad", [{"i7": 9}, {"i7": "4"}, {"i7": True}, {"i7": 2.5}, {"case": "a/b"}]
)
def test_faults_in_papi_files_are_refused(bad: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([papi_record(1, [3] * 300), papi_record(2, [3] * 300) | bad]))
    with pytest.raises(InputError, match=r"subject 2: (item 'i7'|id) is"):
        read(path, PAPI)


def test_a_plain_table_of_the_same_items_is_not_turned_back(tmp_path: Path) -> None:
    header = ",".join(["id", *(f"i{n}" for n in range(1, 301))])
    (tmp_path / "a.csv").write_text(f"{header}\nann{',2' * 300}\n")
    assert (read(tmp_path / "a.csv", PAPI).table == 2).all()


def test_a_long_json_list_is_never_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 PAPI records are 4 MB; a window of 64 Ki characters holds twenty of them."""
    monkeypatch.setattr(jsons, "WINDOW", 1 << 16)
    line = json.dumps(papi_record(0, [4] * 300))
    path = tmp_path / "big.json"
    with path.open("w") as file:
        file.write("[")
        for case in range(1500):
            file.write(("," if case else "") + line.replace('"case": 0', f'"case": {case}'))
        file.write("]")
    assert path.stat().st_size > 4e6
    tracemalloc.start()
    count = sum(1 for _ in read_records(path))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1500 and held < 1e6
