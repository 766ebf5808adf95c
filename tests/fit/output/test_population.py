from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from palign_fit.cli import app
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Refusal, Subject
from palign_fit.output import shards
from palign_fit.output.folder import InUse
from palign_fit.output.population import Fitted
from typer.testing import CliRunner, Result

from tests.fit.conftest import answer_sheet
from tests.fit.output.populations import Stub, answers, fit
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import Persona, load


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file in ``folder``, hidden ones too."""
    return {one.name: sha256(one.read_bytes()).hexdigest() for one in folder.iterdir()}


def test_every_subject_gets_its_own_file_in_the_order_of_the_answers(tmp_path: Path) -> None:
    people, stub = answers(13), Stub()
    found = fit(people, tmp_path / "o", fitter=stub)
    assert [one.id for one in found] == list(people.ids) == stub.fitted
    for place, subject in enumerate(people):
        persona = load(tmp_path / "o" / f"{subject.id}.safetensors")
        assert (persona.offsets[0] == people.table[place]).all()
        outcome = found[place]
        assert isinstance(outcome, Fitted) and outcome.digest == persona.digest


@pytest.mark.parametrize("shard", [0, 4])
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(
    shard: int, tmp_path: Path
) -> None:
    count = 30
    fit(answers(count), tmp_path / "whole", shard)
    out = tmp_path / "killed"
    out.mkdir()
    command = [
        sys.executable,
        "-m",
        "tests.fit.output.populations",
        str(out),
        str(shard),
        str(count),
    ]
    done_before: dict[str, int] = {}
    for kill in range(3):
        process = subprocess.Popen([*command, "0.016"], stderr=subprocess.DEVNULL)
        goal = len(done_before) + 1 + kill
        while process.poll() is None and len(list(out.glob("[ps]*"))) < goal:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        # Whatever is there under its own name is whole, and what was done is not done again.
        for name, digest in digests(out).items():
            assert name.startswith(".") or digest == digests(tmp_path / "whole")[name]
        inodes = {one.name: one.stat().st_ino for one in out.glob("[ps]*")}
        assert done_before.items() <= inodes.items()
        done_before = inodes
    (out / ".s1.safetensors.0123abcd.part").write_bytes(b"half")
    assert subprocess.run([*command, "0"]).returncode == 0
    assert digests(out) == digests(tmp_path / "whole")
    assert done_before.items() <= {one.name: one.stat().st_ino for one in out.iterdir()}.items()


def test_a_killed_run_loses_nobody_who_was_finished(tmp_path: Path) -> None:
    class Killed(Stub):
        def fit(self, subject: Subject) -> Persona:
            if subject.id == "s7":
                raise KeyboardInterrupt
            return super().fit(subject)

    with pytest.raises(KeyboardInterrupt):
        fit(answers(12), tmp_path, fitter=Killed())
    assert sorted(digests(tmp_path)) == [f"s{n}.safetensors" for n in range(7)]


@pytest.mark.parametrize("shard", [0, 5])
def test_a_finished_run_started_again_fits_nobody_and_reports_the_same(
    shard: int, tmp_path: Path
) -> None:
    first = fit(answers(12), tmp_path, shard, Stub(refused=["s3"]))
    before, stub = digests(tmp_path), Stub(refused=["s3"])
    again = fit(answers(12), tmp_path, shard, stub)
    assert stub.fitted == [] and digests(tmp_path) == before
    assert [one.id for one in again] == [one.id for one in first]
    assert [one for one in again if isinstance(one, Refusal)] == [first[3]]
    assert all(one.kept for one in again if isinstance(one, Fitted))


@pytest.mark.parametrize("shard", [0, 5])
def test_other_settings_or_answers_are_fitted_again_and_never_mixed(
    shard: int, tmp_path: Path
) -> None:
    people = answers(10)
    fit(people, tmp_path, shard)
    stub = Stub()
    fit(people, tmp_path, shard, stub, run="b")
    assert stub.fitted == list(people.ids)
    changed = answers(10)
    changed.table[7, 0] = 6 - changed.table[7, 0] if changed.table[7, 0] != 3 else 1
    stub = Stub()
    fit(changed, tmp_path, shard, stub, run="b")
    assert stub.fitted == (["s5", "s6", "s7", "s8", "s9"] if shard else ["s7"])


def test_a_broken_file_is_replaced(tmp_path: Path) -> None:
    fit(answers(3), tmp_path / "o")
    before = digests(tmp_path / "o")
    path = tmp_path / "o" / "s1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    stub = Stub()
    fit(answers(3), tmp_path / "o", fitter=stub)
    assert stub.fitted == ["s1"] and digests(tmp_path / "o") == before


def test_leftovers_of_a_run_that_is_going_on_are_left_alone(tmp_path: Path) -> None:
    one, other, last = (InUse(tmp_path) for _ in range(3))
    one.take()
    part = tmp_path / ".x.part"
    part.write_bytes(b"being written")
    other.take()
    assert part.exists()
    other.release()
    one.release()
    last.take()
    assert not part.exists()
    last.release()


def test_a_member_of_a_shard_is_the_file_of_a_folder(tmp_path: Path) -> None:
    fit(answers(12), tmp_path / "folder")
    fit(answers(12), tmp_path / "shards", shard=5)
    assert [one.name for one in shards.shards_in(tmp_path / "shards")] == [
        f"personas-0000{n}.zip" for n in range(3)
    ]
    result = call("unpack", tmp_path / "shards", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0 and len(json.loads(result.stdout)["personas"]) == 12
    assert digests(tmp_path / "out") == digests(tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "shards" / "personas-00001.zip") as shard:
        assert shard.namelist() == [*(f"s{n}.safetensors" for n in range(5, 10)), "report.jsonl"]
        lines = [json.loads(line) for line in shard.read("report.jsonl").splitlines()]
    assert [line["id"] for line in lines] == [f"s{n}" for n in range(5, 10)]
    assert lines[2]["digest"] == load(tmp_path / "folder" / "s7.safetensors").digest


def test_some_personas_are_unpacked_by_name(tmp_path: Path) -> None:
    fit(answers(12), tmp_path / "shards", shard=5)
    result = call("unpack", tmp_path / "shards", "s3", "s11", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(digests(tmp_path / "out")) == ["s11.safetensors", "s3.safetensors"]
    result = call("unpack", tmp_path / "shards", "s99", "--out", tmp_path / "none")
    assert (
        result.exit_code == 2 and "'s99'" in result.stderr.replace('"', "'")
    ) or "s99" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "names", [["../x.safetensors"], ["/x.safetensors"], ["x.txt"], ["x.safetensors"]]
)
def test_a_zip_that_is_no_shard_is_refused(names: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as shard:
        for name in names:
            shard.writestr(name, b"x")
        # Only the last one claims to be a shard, and its member is no persona.
        if names == ["x.safetensors"]:
            shard.comment = b'{"format": "palign.shard"}'
    result = call("unpack", tmp_path / "a.zip", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "palign-fit: " in result.stderr
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 broken")
    assert call("unpack", tmp_path / "b.zip", "--out", tmp_path / "out").exit_code == 2
    assert not list(tmp_path.glob("out/*")) and not (tmp_path / "x.safetensors").exists()


def test_shards_of_another_run_are_refused_before_any_work(tmp_path: Path) -> None:
    fit(answers(12), tmp_path, shard=4)
    with pytest.raises(InputError, match=r"1 shard\(s\) beyond the 2 .*personas-00002"):
        fit(answers(8), tmp_path, shard=4)
    with pytest.raises(InputError, match="wanted 1 to"):
        fit(answers(8), tmp_path, shard=-1)


@pytest.fixture(scope="module")
def mixed(inventory: Inventory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects that can be fitted and three that cannot."""
    sheets = {
        "ann": answer_sheet(inventory, 1),
        "flat": dict.fromkeys(answer_sheet(inventory, 1), 3),
        "ben": answer_sheet(inventory, 2),
        "empty": {},
        "few": dict(list(answer_sheet(inventory, 3).items())[:4]),
    }
    path = tmp_path_factory.mktemp("mixed") / "answers.json"
    rows = [{"id": name, "answers": sheet} for name, sheet in sheets.items()]
    path.write_text(json.dumps(rows))
    return path


def run(tiny_checkpoint: Path, answers_file: Path, out: Path, *more: object) -> Result:
    return call(
        "run", "--model", tiny_checkpoint, "--answers", answers_file, "--out", out, "--heads", 4,
        "--alpha", 1, "--device", "cpu", *more,
    )  # fmt: skip


def test_subjects_that_cannot_be_fitted_are_skipped_and_listed(
    tiny_checkpoint: Path, mixed: Path, tmp_path: Path
) -> None:
    result = run(tiny_checkpoint, mixed, tmp_path / "o", "--json")
    assert result.exit_code == 1
    assert sorted(digests(tmp_path / "o")) == ["ann.safetensors", "ben.safetensors"]
    printed = json.loads(result.stdout)
    assert [one["id"] for one in printed["skipped"]] == ["flat", "empty", "few"]
    assert (printed["fitted"], printed["weak"], printed["kept"]) == (2, 2, 0)
    for part in ("all 120 answers are 3", "0 answers", "4 answers", "3 of 5 subjects cannot"):
        assert part in result.stderr
    result = run(tiny_checkpoint, mixed, tmp_path / "o", "--json", "--allow-skipped", "--fail-weak")
    assert result.exit_code == 3 and "WEAK: 2 of 2" in result.stderr
    assert json.loads(result.stdout)["kept"] == 2
    allowed = run(tiny_checkpoint, mixed, tmp_path / "o", "--allow-skipped")
    assert allowed.exit_code == 0 and "there already" in allowed.stdout
    shard = run(tiny_checkpoint, mixed, tmp_path / "s", "--shards", 2, "--memory", 60, "--json")
    assert shard.exit_code == 1
    first, last = json.loads(shard.stdout)["personas"]
    assert (first["path"], last["path"]) == ("personas-00000.zip", "personas-00001.zip")
    assert {one["digest"] for one in printed["personas"]} == {first["digest"], last["digest"]}


def test_a_population_of_nobody_is_bad_input(
    tiny_checkpoint: Path, mixed: Path, tmp_path: Path
) -> None:
    rows = [row for row in json.loads(mixed.read_text()) if row["id"] not in ("ann", "ben")]
    for some in (rows, rows[:1]):
        (tmp_path / "a.json").write_text(json.dumps(some))
        result = run(tiny_checkpoint, tmp_path / "a.json", tmp_path / "o")
        assert result.exit_code == 2 and "all 120 answers are 3" in result.stderr
        assert not (tmp_path / "o").exists()


def test_a_weak_persona_is_written_marked_and_told_of_and_fails_if_asked_to(
    tiny_checkpoint: Path, answers_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    result = run(tiny_checkpoint, answers_file, out)
    assert result.exit_code == 0 and "WEAK: 1 of 1" in result.stderr
    assert load(out).fit["weak"] is True
    failed = run(tiny_checkpoint, answers_file, out, "--fail-weak")
    assert failed.exit_code == 3 and "WEAK: 1 of 1" in failed.stderr


def test_the_same_person_under_another_name_is_fitted_again(
    tiny_checkpoint: Path, answers_file: Path, tmp_path: Path
) -> None:
    for more in ([], ["--name", "Ann"], ["--description", "hello"], ["--seed", "1"]):
        run(tiny_checkpoint, answers_file, tmp_path / "x.safetensors", *more, "--no-cache")
        persona = load(tmp_path / "x.safetensors")
        assert (persona.name, persona.description, persona.fit["seed"]) == (
            "Ann" if "--name" in more else "ann",
            "hello" if "--description" in more else "",
            1 if "--seed" in more else 0,
        )


def test_a_person_is_the_same_whoever_else_is_in_the_file(
    inventory: Inventory, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Directions are made of the whole inventory: who answers further items changes nobody."""
    some = dict(list(answer_sheet(inventory, 1).items())[:60])
    people = [{"id": "ann", "answers": some}, {"id": "ben", "answers": answer_sheet(inventory, 2)}]
    for name, rows in (("ann", people[:1]), ("both", people)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    run(tiny_checkpoint, tmp_path / "ann.json", tmp_path / "o")
    before = digests(tmp_path / "o")["ann.safetensors"]
    again = run(tiny_checkpoint, tmp_path / "both.json", tmp_path / "o", "--json")
    assert json.loads(again.stdout)["kept"] == 1
    assert digests(tmp_path / "o")["ann.safetensors"] == before
    run(tiny_checkpoint, tmp_path / "both.json", tmp_path / "fresh")
    assert digests(tmp_path / "o") == digests(tmp_path / "fresh")


def test_an_answers_table_is_one_byte_an_answer() -> None:
    people = answers(1000)
    assert people.table.dtype == np.uint8 and people.table.nbytes == 8000
