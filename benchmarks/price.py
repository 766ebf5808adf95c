"""What steering costs, beside stock vLLM, LoRA and a personality prompt, on real servers over HTTP.

    python benchmarks/price.py [--quick] [--json FILE]

Three servers of the demo model (stock, with the plugin, with 16 LoRA adapters) take turns on the same
load, made by ``vllm bench serve``; the plugin's server answers plain ("idle") and steered requests. The
worker has one core, all else the other; servers start anew in every block and swap cores.
Ratios are of turns of one round; printed are medians with quartiles. bfloat16, torch.compile on
(vLLM does not compile with LoRA on a CPU). Some 20 minutes on two quiet cores, --quick about half.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from load import Outcome, measure
from servers import ENVIRONMENT, SERVED, Server
from subjects import Prompts, write_adapters, write_personas
from tables import BASE, Turns, price_table, rivals_table

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".demo" / "SmolLM2-135M-Instruct"
PERSONAS, ADAPTERS, PEOPLE = 256, 16, 16


@dataclass(frozen=True)
class Variant:
    """``server`` answers; requests take ``names`` in turn; ``prompt`` says who is in the system prompt."""

    server: str
    names: tuple[str, ...] = ()
    prompt: str = ""


@dataclass(frozen=True)
class Load:
    """``batch`` requests at once of ``tokens`` new tokens each, on every variant in ``variants``."""

    batch: int
    tokens: int
    variants: tuple[str, ...]


FEW = Load(16, 128, (BASE, "idle", "1 persona", "16 personas"))
MANY = Load(256, 32, (BASE, "idle", "1 persona", "16 personas", "64 personas", "256 personas"))
RIVALS = Load(
    16, 128, (BASE, "16 personas", "1 adapter", "16 adapters", "prompt, first time", "prompt, again")
)  # fmt: skip

Block = tuple[tuple[int, Load], ...]
"""(rounds, load) pairs that freshly started servers go through."""

FULL: tuple[Block, ...] = (
    ((1, RIVALS), (3, FEW), (1, MANY)),
    ((4, FEW), (1, MANY)),
    ((3, FEW),),
)
QUICK: tuple[Block, ...] = (
    ((1, Load(16, 32, RIVALS.variants)), (1, FEW), (1, Load(256, 8, MANY.variants))),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of everything, fewer tokens"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every turn to FILE")
    options = parser.parse_args()
    # Servers have sessions of their own: being asked to end must not leave them running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    os.environ.update(ENVIRONMENT)
    subprocess.run([sys.executable, ROOT / "tools" / "demo_model.py", MODEL], check=True)
    loads: dict[Load, Turns] = {}
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        blocks = QUICK if options.quick else FULL
        for number, block in enumerate(blocks):
            with bench.servers(block, swapped=number % 2 == 1) as servers:
                for load in [load for count, load in block for _ in range(count)]:
                    turns = loads.setdefault(load, {name: [] for name in load.variants})
                    for variant, outcome in bench.round(servers, load):
                        turns[variant].append(outcome)
                    if options.json:
                        options.json.write_text(json.dumps(rows(loads)))
                bench.check_steered(servers["palign"])
            say(f"block {number + 1} of {len(blocks)}")
    for load, turns in loads.items():
        print(f"\nbatch {load.batch} x {load.tokens} tokens, {len(turns[BASE])} rounds\n")
        print(price_table(turns, bench.block_mib))
        if "prompt, again" in turns:
            print(f"\n{rivals_table(turns)}")
    return 0


def rows(loads: dict[Load, Turns]) -> list[dict[str, Any]]:
    return [
        {"batch": load.batch, "tokens": load.tokens, "variant": variant, **asdict(outcome)}
        for load, turns in loads.items()
        for variant, outcomes in turns.items()
        for outcome in outcomes
    ]


class Bench:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._folder = folder
        self._personas = write_personas(folder / "personas", PERSONAS)
        self._adapters = write_adapters(folder / "adapters", ADAPTERS, MODEL)
        self._prompts = Prompts(AutoTokenizer.from_pretrained(MODEL))
        self._known: list[str] = []
        self._turn = 0
        self._steered = 0
        self.block_mib = 0.0
        """MiB of one KV block."""
        persona = [f"{SERVED}@{name}" for name in self._personas]
        self._variants = {
            BASE: Variant("stock"),
            "idle": Variant("palign"),
            "1 persona": Variant("palign", tuple(persona[:1])),
            "16 personas": Variant("palign", tuple(persona[:16])),
            "64 personas": Variant("palign", tuple(persona[:64])),
            "256 personas": Variant("palign", tuple(persona)),
            "1 adapter": Variant("lora", ("a0",)),
            "16 adapters": Variant("lora", tuple(self._adapters)),
            "prompt, first time": Variant("stock", prompt="new"),
            "prompt, again": Variant("stock", prompt="known"),
        }

    @contextmanager
    def servers(self, block: Block, *, swapped: bool) -> Iterator[dict[str, Server]]:
        """The servers that ``block`` asks, warm."""
        shared = ("--max-model-len", "4096", "--max-num-seqs", "256")
        adapters = [f"{name}={path}" for name, path in self._adapters.items()]
        options: dict[str, tuple[str | Path, ...]] = {
            "stock": (),
            "palign": ("--plugin", "palign", "--palign-personas", self._folder / "personas"),
            # One more than are used: vLLM on a CPU gives requests without an adapter the last slot's.
            "lora": (
                "--enable-lora", "--max-lora-rank", "8", "--max-loras", str(ADAPTERS + 1),
                "--lora-modules", *adapters,
            ),
        }  # fmt: skip
        asked = {self._variants[name].server for _, load in block for name in load.variants}
        servers: dict[str, Server] = {}
        cores = sorted(os.sched_getaffinity(0))[:2]
        try:
            for name in asked:
                own = options[name]
                servers[name] = Server(MODEL, self._folder / f"{name}.log", *shared, *own)
            for name, server in servers.items():
                server.wait()
                say(f"{name} is up")
            engine, front = (cores[-1], cores[0]) if swapped else (cores[0], cores[-1])
            os.sched_setaffinity(0, {front})
            for server in servers.values():
                server.pin(engine=engine, front=front)
            self.block_mib = (
                1024 * float(ENVIRONMENT["VLLM_CPU_KVCACHE_SPACE"]) / server.kv_blocks()[1]
            )
            self._steered, self._known = 0, []
            for name in (BASE, "256 personas", "16 adapters"):
                if self._variants[name].server in servers:
                    # Every persona and adapter comes into memory.
                    batch = max(16, len(self._variants[name].names))
                    self._load(servers, Load(batch, 2, ()), name)
            yield servers
        finally:
            os.sched_setaffinity(0, cores)
            for server in servers.values():
                server.stop()

    def round(self, servers: dict[str, Server], load: Load) -> Iterator[tuple[str, Outcome]]:
        """Every variant once. Every other round goes backwards: what drifts with time hits all alike."""
        self._turn += 1
        for name in load.variants if self._turn % 2 else load.variants[::-1]:
            if self._variants[name].prompt == "known" and not self._known:
                self._load(servers, load, "prompt, first time")
            outcome = self._load(servers, load, name)
            say(
                f"batch {load.batch} x {load.tokens}, {name}: {outcome.tokens_per_second:.1f} tokens/s"
            )
            yield name, outcome

    def check_steered(self, server: Server) -> None:
        """Every request that asked for a persona was answered with one: what the server itself counted."""
        counted = server.metric("palign_requests_total", kind="steered")
        if counted != self._steered:
            raise SystemExit(
                f"{self._steered} requests asked for a persona, {counted:g} were steered"
            )

    def _load(self, servers: dict[str, Server], load: Load, name: str) -> Outcome:
        variant = self._variants[name]
        if variant.prompt == "new":
            self._known = self._prompts.new_people(PEOPLE)
        prompts = (
            self._prompts.of_people(self._known)
            if variant.prompt
            else self._prompts.plain(load.batch)
        )
        if variant.server == "palign" and variant.names:
            self._steered += len(prompts)
        server = servers[variant.server]
        return measure(server, MODEL, prompts, load.tokens, variant.names, self._folder)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
