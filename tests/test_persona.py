"""The file format: literal bytes, round trips, and a folder's worth of hostile files."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.personas import SMOLLM2, random_persona
from vllm_palign import Persona, PersonaInvalid, load, save
from vllm_palign.persona import MAX_FILE_BYTES

HEADER: dict[str, Any] = {
    "alpha": 4.0,
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "description": "Ünïcode",
    "fit": {"seed": 0, "from the future": [1]},
    "format": "palign.persona",
    "format_version": 1,
    "head_dim": 2,
    "method": "pas",
    "name": "alice",
    "num_heads": 3,
    "num_layers": 4,
}
TENSORS = {
    "layers": np.array([0, 0, 3], np.int32),
    "heads": np.array([0, 2, 1], np.int32),
    "offsets": np.array([[1, 2], [3, 4], [5, 6]], np.float32),
}
_NAMES = {"int32": "I32", "float32": "F32", "int64": "I64", "float64": "F64", "float16": "F16"}


def pack(
    tensors: dict[str, np.ndarray] | None = None,
    header: Any = None,
    metadata: dict[str, str] | None = None,
    **changes: Any,
) -> bytes:
    """A safetensors file written by hand, so that it can break any rule."""
    fields = {**HEADER, **changes} if header is None else header
    entries: dict[str, Any] = {
        "__metadata__": {
            "palign": json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        }
        if metadata is None
        else metadata
    }
    data = b""
    for name, array in (TENSORS if tensors is None else tensors).items():
        end = len(data) + array.nbytes
        entries[name] = {
            "dtype": _NAMES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    head = json.dumps(entries, ensure_ascii=False).encode()
    return struct.pack("<Q", len(head)) + head + data


def changed(**arrays: np.ndarray | None) -> bytes:
    tensors = {**TENSORS, **arrays}
    return pack({name: array for name, array in tensors.items() if array is not None})


def without(field: str) -> bytes:
    return pack(header={key: value for key, value in HEADER.items() if key != field})


def zipped() -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


ints, floats = np.int32, np.float32
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "not a safetensors file"),
    "text": (b"hello, this is no tensor file", "not a safetensors file"),
    "pickle": (pickle.dumps(TENSORS), "pickle"),
    "torch.save archive": (zipped(), "pickle"),
    "header length beyond the file": (struct.pack("<Q", 1 << 40) + b"{}", "not a safetensors file"),
    "header is no JSON": (struct.pack("<Q", 8) + b"{nonsens", "not a safetensors file"),
    "cut off": (pack()[:-3], "not a safetensors file"),
    "bytes appended": (pack() + b"x", "not a safetensors file"),
    "larger than 16 MiB": (pack() + b"\0" * MAX_FILE_BYTES, "16 MiB"),
    "no metadata": (pack(metadata={}), "metadata"),
    "two metadata keys": (pack(metadata={"palign": json.dumps(HEADER), "x": ""}), "exactly one"),
    "other metadata key": (pack(metadata={"format": "pt"}), "exactly one"),
    "metadata is no JSON": (pack(metadata={"palign": "{"}), "not JSON"),
    "metadata is a list": (pack(metadata={"palign": "[]"}), "wanted an object"),
    "metadata nested without end": (pack(metadata={"palign": deep(100_000)}), "not JSON"),
    "metadata with NaN": (pack(alpha=float("nan")), "not JSON"),
    "metadata with a key twice": (pack(metadata={"palign": '{"a":1,"a":2}'}), "twice"),
    "unknown format": (pack(format="lora"), "format is"),
    "format missing": (without("format"), "format is"),
    "unknown format_version": (pack(format_version=2), "format_version"),
    "format_version true": (pack(format_version=True), "format_version"),
    "format_version 1.0": (pack(format_version=1.0), "format_version"),
    "format_version missing": (without("format_version"), "format_version"),
    "alpha missing": (without("alpha"), "'alpha' is missing"),
    "alpha text": (pack(alpha="4"), "'alpha'"),
    "alpha true": (pack(alpha=True), "'alpha'"),
    "alpha beyond float": (pack(alpha=10**400), "alpha"),
    "alpha overflows float32": (pack(alpha=1e39), "overflows"),
    "base_model null": (pack(base_model=None), "'base_model'"),
    "description number": (pack(description=1), "'description'"),
    "fit a list": (pack(fit=[]), "'fit'"),
    "method missing": (without("method"), "'method' is missing"),
    "name a number": (pack(name=7), "'name'"),
    "head_dim float": (pack(head_dim=2.0), "'head_dim'"),
    "head_dim zero": (pack(head_dim=0), "head_dim is 0"),
    "head_dim other than the offsets'": (pack(head_dim=4), "2 wide, wanted head_dim 4"),
    "num_layers negative": (pack(num_layers=-4), "num_layers is -4"),
    "num_heads text": (pack(num_heads="3"), "'num_heads'"),
    "offsets missing": (changed(offsets=None), "tensors are"),
    "tensor too many": (changed(extra=np.zeros(1, floats)), "tensors are"),
    "layers int64": (changed(layers=TENSORS["layers"].astype(np.int64)), "I64"),
    "offsets float16": (changed(offsets=TENSORS["offsets"].astype(np.float16)), "F16"),
    "offsets float64": (changed(offsets=TENSORS["offsets"].astype(np.float64)), "F64"),
    "heads of rank 2": (changed(heads=TENSORS["heads"][None]), "rank 1"),
    "offsets of rank 1": (changed(offsets=TENSORS["offsets"].ravel()), "rank 2"),
    "fewer heads than layers": (changed(heads=TENSORS["heads"][:2]), "as many each"),
    "fewer offsets than layers": (changed(offsets=TENSORS["offsets"][:2]), "as many each"),
    "nothing steered": (
        changed(
            layers=np.zeros(0, ints), heads=np.zeros(0, ints), offsets=np.zeros((0, 2), floats)
        ),
        "0 steered heads",
    ),
    "more heads than the model has": (
        changed(
            layers=np.zeros(13, ints),
            heads=np.arange(13, dtype=ints),
            offsets=np.ones((13, 2), floats),
        ),
        "13 steered heads",
    ),
    "layer index too large": (changed(layers=np.array([0, 0, 4], ints)), "layers holds 4"),
    "layer index negative": (changed(layers=np.array([-1, 0, 3], ints)), "layers holds -1"),
    "head index too large": (changed(heads=np.array([0, 3, 1], ints)), "heads holds 3"),
    "head index negative": (changed(heads=np.array([-2, 2, 1], ints)), "heads holds -2"),
    "a pair twice": (changed(heads=np.array([2, 2, 1], ints)), "twice"),
    "pairs not sorted": (changed(layers=np.array([3, 0, 0], ints)), "not sorted"),
    "NaN": (changed(offsets=np.array([[1, np.nan], [3, 4], [5, 6]], floats)), "NaN or Inf"),
    "Inf": (changed(offsets=np.array([[1, 2], [3, -np.inf], [5, 6]], floats)), "NaN or Inf"),
}


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
        "import vllm_palign, vllm_palign.store, vllm_palign.wire, vllm_palign.config, vllm_palign.middleware\n"
        "print(vllm_palign.persona_args('alice', strength=1.5))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "alice" in done.stdout


def test_the_bank_needs_torch_but_not_vllm() -> None:
    code = "import sys; sys.modules['vllm'] = None; import vllm_palign.bank, vllm_palign.ops"
    subprocess.run([sys.executable, "-c", code], check=True)
