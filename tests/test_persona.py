"""The file format: literal bytes, round trips, and a folder's worth of hostile files."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile_files import HOSTILE, TENSORS, pack
from tests.personas import SMOLLM2, random_persona
from vllm_palign import Persona, PersonaInvalid, load, save
from vllm_palign.persona import model_name


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_file_is_refused_and_the_error_names_file_and_fault(
    fault: str, tmp_path: Path
) -> None:
    data, names = HOSTILE[fault]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(PersonaInvalid) as refused:
        load(path)
    assert str(path) in refused.value.message
    assert names in refused.value.message
    assert len(refused.value.message) < 1500


def test_there_are_at_least_thirty_distinct_faults() -> None:
    assert len({data for data, _ in HOSTILE.values()}) >= 30


def test_a_file_written_by_another_program_is_read() -> None:
    persona = Persona.from_bytes(pack())
    assert persona.name == "alice"
    assert persona.description == "Ünïcode"
    assert persona.fit["from the future"] == [1]
    np.testing.assert_array_equal(persona.offsets, TENSORS["offsets"])


@pytest.mark.parametrize(
    ("fit", "most"), [({}, None), ({"max_strength": 2}, 2.0), ({"max_strength": 0.5}, 0.5)]
)
def test_a_file_says_how_strong_it_may_be_asked_for(
    fit: dict[str, object], most: float | None
) -> None:
    assert Persona.from_bytes(pack(fit=fit)).max_strength == most


def test_a_bound_that_json_cannot_hold_is_refused_where_a_persona_is_made() -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(PersonaInvalid, match="max_strength is float"):
            replace(random_persona(1, **SMOLLM2), fit={"max_strength": wrong})


def test_a_header_of_any_length_is_read_even_if_the_file_begins_like_a_pickle() -> None:
    firsts = set()
    for length in range(300):
        data = pack(description="x" * length)
        firsts.add(data[0])
        assert len(Persona.from_bytes(data).description) == length
    assert 0x80 in firsts


def test_the_digest_is_the_sha256_of_the_files_own_bytes() -> None:
    data = pack()
    assert Persona.from_bytes(data).digest == hashlib.sha256(data).hexdigest()


def test_a_missing_file_is_a_persona_error() -> None:
    with pytest.raises(PersonaInvalid, match="cannot be read"):
        load("nowhere.safetensors")


def test_saving_and_loading_keeps_every_byte(tmp_path: Path) -> None:
    persona = random_persona(1, **SMOLLM2)
    path = save(persona, tmp_path / "p.safetensors")
    assert path.read_bytes() == persona.to_bytes()
    again = load(path)
    assert again == persona
    assert again.to_bytes() == persona.to_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_persona_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "from tests.personas import random_persona, SMOLLM2\n"
        "print(random_persona(5, **SMOLLM2).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert digests == {random_persona(5, **SMOLLM2).digest}


def test_the_header_is_canonical_json_under_one_key() -> None:
    data = random_persona(2, **SMOLLM2).to_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    assert list(metadata) == ["palign"]
    fields = json.loads(metadata["palign"])
    assert metadata["palign"] == json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


def test_nothing_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(random_persona(1, **SMOLLM2), tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_a_persona_cannot_be_changed() -> None:
    persona = random_persona(1, **SMOLLM2)
    with pytest.raises(ValueError, match="read-only"):
        persona.offsets[0, 0] = 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_never_raise_anything_else(data: bytes) -> None:
    with pytest.raises(PersonaInvalid):
        Persona.from_bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_byte_gives_another_digest_or_a_persona_error(data: st.DataObject) -> None:
    original = bytearray(pack())
    at = data.draw(st.integers(0, len(original) - 1))
    original[at] ^= data.draw(st.integers(1, 255))
    try:
        read: Callable[[], Persona] = lambda: Persona.from_bytes(bytes(original))  # noqa: E731
        assert read().digest != Persona.from_bytes(pack()).digest
    except PersonaInvalid:
        pass


def test_neither_torch_nor_vllm_is_needed_to_read_and_choose() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['vllm'] = None\n"
        "import vllm_palign, vllm_palign.admission.resolver, vllm_palign.selection, vllm_palign.config.config, vllm_palign.server.middleware\n"
        "print(vllm_palign.persona_args('alice', strength=1.5))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "alice" in done.stdout


def test_the_bank_needs_torch_but_not_vllm() -> None:
    code = "import sys; sys.modules['vllm'] = None; import vllm_palign.worker.bank, vllm_palign.worker.ops"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "source",
    [
        "SmolLM2",
        "org/SmolLM2",
        "/models/SmolLM2/",
        "C:\\models\\SmolLM2",
        "/home/me/.cache/huggingface/hub/models--org--SmolLM2/snapshots/93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
    ],
)
def test_a_model_has_one_name_wherever_it_lies(source: str) -> None:
    assert model_name(source) == "SmolLM2"
