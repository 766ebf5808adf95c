"""Shared by all tests: the demo model, a tiny model, personas for both, and how servers are started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from tests.personas import SMOLLM2, random_persona
from tests.warm import Forked, kill_group
from tests.warm import warm as warm_process
from vllm_palign import Persona, save

ROOT = Path(__file__).resolve().parent.parent

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}

pytest_plugins = ["tests.shown", "tests.databases"]

TINY = {"num_layers": 3, "num_heads": 4, "head_dim": 32}

UNIPROC = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
ONE_PROCESS = ("--distributed-executor-backend", UNIPROC)
"""The engine does its one worker's work itself. vLLM's default on CPUs is two processes, each of which
spins while the other works: on two cores nothing is left for tests and API servers. By its short name
vLLM changes it back."""

TINY_SERVER = (
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4",
    "--block-size", "32", "--enable-prompt-tokens-details", "--kv-cache-memory-bytes", "64M",
    *ONE_PROCESS,
)  # fmt: skip
"""Options of servers of the tiny model: few sequences at a time, so that slots are reused."""

SHARED_SERVERS = ("tests/http/registry/", "tests/http/tenants/", "tests/http/", "tests/play/")
"""Folders whose files share servers."""

LONGEST = (
    "tests/soak/test_soak.py", *SHARED_SERVERS, "tests/fit/test_fit.py", "tests/engine/test_oracle.py",
    "tests/engine/test_families.py", "tests/engine/test_armed.py",
)  # fmt: skip
"""Begun first, so that at the end no process waits minutes for the other."""


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(ENVIRONMENT)
    if hasattr(config.option, "loadscopereorder"):
        # By number of tests, xdist would begin with the shortest.
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        first = (at for at, path in enumerate(LONGEST) if item.nodeid.startswith(path))
        return next(first, len(LONGEST))

    items.sort(key=place)


class ByServer(LoadScopeScheduling):
    """Gives each process whole files, and whole folders where files share a server: a server is started
    once, not once a process, and stops with the last test that needs it. Eight at a time do not fit.

    xdist's own ``loadgroup`` does that by marks, and under pytest 9.2 ignores them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in SHARED_SERVERS if file.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByServer(config, log)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct as a safetensors checkpoint."""
    path = ROOT / ".demo" / "SmolLM2-135M-Instruct"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / "model.lock"):  # the suite runs in two processes
        subprocess.run([sys.executable, ROOT / "tools" / "demo_model.py", path], check=True)
    return path


def build_tiny_model(path: Path, tokenizer: Path) -> None:
    """A random float32 Llama with heads x head_dim = 128 and hidden size 64, and the tokenizer given."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=TINY["num_layers"],
        num_attention_heads=TINY["num_heads"],
        num_key_value_heads=2,
        head_dim=TINY["head_dim"],
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).float().save_pretrained(path)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(path)


@pytest.fixture(scope="session")
def tiny_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    build_tiny_model(path, demo_model)
    return path


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Any:
    """The tiny model in plain Hugging Face, for ``tests.oracle``."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def write_personas(
    folder: Path, count: int, shape: dict[str, int], **kwargs: Any
) -> dict[str, Persona]:
    """``count`` random personas p0, p1, ... as files ``folder/NAME.safetensors``."""
    personas = {
        f"p{seed}": random_persona(seed, **shape, name=f"p{seed}", **kwargs)
        for seed in range(count)
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, persona in personas.items():
        save(persona, folder / f"{name}.safetensors")
    return personas


@pytest.fixture(scope="session")
def smol_personas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Persona]]:
    folder = tmp_path_factory.mktemp("smol-personas")
    personas = write_personas(folder, 8, SMOLLM2, scale=0.05)
    for name, other in (("alice", "p0"), ("bob", "p1")):  # the names the examples use
        save(personas[other], folder / f"{name}.safetensors")
    return folder, personas


@pytest.fixture(scope="session")
def tiny_personas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Persona]]:
    folder = tmp_path_factory.mktemp("tiny-personas")
    return folder, write_personas(folder, 24, TINY, steered=6, scale=0.5)


@dataclass
class Server:
    """A running ``vllm serve``."""

    url: str
    model: str
    log: Path
    process: subprocess.Popen[bytes] | Forked
    options: tuple[str, ...]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json={"model": self.model, **body}, timeout=120)


def start_server(
    model: Path, log: Path, *options: str, warm: bool = True, **environment: str
) -> Server:
    """Start the real command line on a free port and wait until it answers.

    A ``warm`` server's processes begin with vLLM imported, which alone takes each of them ten seconds; others start
    as a user's do.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(model), "--served-model-name", "base",
        "--host", "127.0.0.1", "--port", str(port), "--kv-cache-memory-bytes", "256M", *options,
    ]  # fmt: skip
    environment = {**os.environ, **environment}
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB, and it would overrule the option
    process: subprocess.Popen[bytes] | Forked
    if warm:
        process = start_warm(command, log, environment)
    else:
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    server = Server(f"http://127.0.0.1:{port}", "base", log, process, options)
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(f"vllm serve ended early:\n{log.read_text()[-4000:]}")
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(0.5)
    stop_server(server)
    raise AssertionError(f"vllm serve did not come up:\n{log.read_text()[-4000:]}")


def start_warm(command: list[str], log: Path, environment: dict[str, str]) -> Forked:
    """A script's command line with exactly these variables, in a process that begins with vLLM imported."""
    folder = log.with_suffix(".started")
    folder.mkdir()
    log.symlink_to(folder / "log.txt")
    return warm_process().start(Path(command[0]), command[1:], folder, environment)


def stop_server(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(30)
    except subprocess.TimeoutExpired:
        kill_group(server.process.pid)
        server.process.wait()


def run_python(code: str, timeout: float = 300, stdin: str = "", **environment: str | None) -> Any:
    """Run ``code`` in a fresh interpreter at the repository root; it prints ``RESULT`` and JSON on one
    line, among whatever vLLM logs."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, value in environment.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (result,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(result.removeprefix("RESULT "))
