"""vLLM's V2 model runner without a GPU: its Triton kernels run in the interpreter.

Set here is what the V2 code expects of a GPU machine and nothing of palign's: a Triton driver that
says it is active, streams and events that do nothing. Needs TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch


class _Nothing:
    """A CUDA stream or event that has already happened."""

    device = torch.device("cpu")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def pretend_there_is_triton() -> None:
    import torch.utils._triton
    import triton.backends
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    class Driver(DriverBase):
        def __init__(self) -> None:
            pass

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> Any:
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cpu", 0, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int | None = None) -> int:
            return 0

        def get_benchmarker(self) -> Any:
            return lambda call, **kwargs: [call() and 0.0]

        def get_device_interface(self) -> Any:
            return torch.cpu

    triton.backends.backends.clear()
    triton.backends.backends["cpu"] = triton.backends.Backend(compiler=object, driver=Driver)
    driver.set_active(Driver())
    # Inductor must not believe in it.
    torch.utils._triton.has_triton = lambda: False


def pretend_there_are_streams() -> None:
    torch.cuda.Stream = _Nothing  # type: ignore[misc,assignment]
    torch.cuda.Event = _Nothing  # type: ignore[misc,assignment]
    torch.Event = _Nothing  # type: ignore[misc,assignment]
    torch.cuda.current_stream = lambda *args: _Nothing()
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.set_stream = lambda stream: None


def pretend() -> None:
    """Before vLLM is imported, which looks for Triton then."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    pretend_there_is_triton()
    pretend_there_are_streams()
