"""What personas cost behind one system prompt that all users share: many users, short questions.

    python benchmarks/shared_prompt.py [--quick] [--block N ...] [--json FILE]

Every user has a persona of their own; the prompt is in the server's cache when they come. Stock vLLM beside the
plugin with scope ``answers`` (the prompt is everybody's) and ``all`` (each persona computes it for itself), a LoRA
adapter each, and a personality prompt each behind the common one. Then chats of ten turns, in which every user
goes on with what they were answered. Servers, cores, rounds and ratios as in price.py, but float32 and KV blocks of
32 tokens. Some 35 minutes on two quiet cores. On one core all share it, and the front end's time counts in full.
The run can be spread: ``--block`` takes some of its blocks, ``--json`` keeps all turns and counts those that FILE
has already.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chats import Turn as ChatTurn
from chats import converse
from load import Outcome, measure
from price import ADAPTERS, MODEL, PERSONAS, ROOT, say
from servers import ENVIRONMENT, SERVED, Server
from subjects import Prompts, write_adapters, write_personas
from tables import BASE, milliseconds, ratios, spread

TOKENS = 32
"""New tokens of an answer in a crowd."""
CHAT_TOKENS, CHAT_TURNS, CHAT_SYSTEM = 16, 10, 500
ONE_PROCESS = (
    "--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"
)  # fmt: skip
"""Engine and worker in one, where there is one core: as two processes each spins while the other works."""
SHOWN_TURNS = (1, 2, 5, 10)

ANSWERS, ALL, ADAPTER, PROMPT = "answers", "all", "an adapter each", "a personality prompt each"
SERVERS = {BASE: "stock", ANSWERS: ANSWERS, ALL: ALL, ADAPTER: "lora", PROMPT: "stock"}
SCOPED = (ANSWERS, ALL)
PAIR, SCOPES = (BASE, ANSWERS), (BASE, ANSWERS, ALL)
RIVALS = (BASE, ANSWERS, ADAPTER, PROMPT)


@dataclass(frozen=True)
class Crowd:
    """``users`` at once behind a system prompt of ``system`` tokens, on every variant in ``variants``."""

    users: int
    system: int
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Chats:
    """``users`` at once, ten turns each."""

    users: int
    variants: tuple[str, ...]


@dataclass
class Turn(Outcome):
    most_blocks: int
    """KV blocks that were held at once."""
    found: float
    """Share of the prompt tokens that were in the cache."""
    front_cpu: float
    engine_cpu: float
    """Seconds of processor time, of the API server and of everything behind it."""


@dataclass
class Results:
    """Turns by load and variant, in the order of their rounds."""

    crowds: dict[Crowd, dict[str, list[Turn]]] = field(default_factory=dict)
    chats: dict[Chats, dict[str, list[list[ChatTurn]]]] = field(default_factory=dict)
    """[rounds][turns]."""


Block = tuple[tuple[int, Crowd | Chats], ...]
"""(rounds, load) pairs that freshly started servers go through."""

FULL: tuple[Block, ...] = (
    ((5, Crowd(16, 500, SCOPES)), (1, Crowd(64, 500, SCOPES))),
    ((4, Crowd(64, 500, PAIR)), (2, Crowd(256, 500, PAIR))),
    ((2, Crowd(16, 2000, SCOPES)), (4, Crowd(16, 2000, PAIR)), (2, Crowd(64, 2000, PAIR))),
    ((2, Crowd(64, 2000, PAIR)), (2, Crowd(256, 2000, PAIR))),
    ((6, Chats(1, SCOPES)), (3, Chats(16, SCOPES))),
    ((1, Crowd(16, 500, RIVALS)), (1, Crowd(16, 2000, RIVALS))),
)
QUICK: tuple[Block, ...] = (
    (
        (2, Crowd(16, 500, PAIR)),
        (1, Chats(4, SCOPES)),
        (1, Crowd(64, 500, PAIR)),
        (1, Crowd(16, 2000, PAIR)),
        (1, Crowd(256, 500, PAIR)),
    ),
    ((1, Crowd(16, 500, SCOPES)),),
    ((1, Crowd(16, 500, RIVALS)),),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smaller loads, eager, few rounds")
    parser.add_argument(
        "--block",
        type=int,
        action="append",
        metavar="N",
        help="only this block, from 1; repeatable",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every turn in FILE")
    options = parser.parse_args()
    blocks = QUICK if options.quick else FULL
    chosen = options.block or list(range(1, len(blocks) + 1))
    if not all(1 <= number <= len(blocks) for number in chosen):
        parser.error(f"--block: wanted 1 to {len(blocks)}, got {chosen}")
    # Servers have sessions of their own: being asked to end must not leave them running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    os.environ.update(ENVIRONMENT)
    subprocess.run([sys.executable, ROOT / "tools" / "demo_model.py", MODEL], check=True)
    results = Results()
    if options.json and options.json.exists():
        results = read(options.json.read_text())
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), results, eager=options.quick)
        for number in chosen:
            block = blocks[number - 1]
            with bench.servers(block, swapped=number % 2 == 0) as servers:
                for load in [load for count, load in block for _ in range(count)]:
                    bench.round(servers, load)
                    if options.json:
                        options.json.write_text(write(results))
                bench.check_steered(servers)
            say(f"block {number} of {len(blocks)}")
    print(report(results))
    return 0


class Bench:
    def __init__(self, folder: Path, results: Results, *, eager: bool) -> None:
        from transformers import AutoTokenizer

        self._folder = folder
        self._eager = eager
        self._results = results
        self._personas = write_personas(folder / "personas", PERSONAS)
        self._adapters = write_adapters(folder / "adapters", ADAPTERS, MODEL)
        self._prompts = Prompts(AutoTokenizer.from_pretrained(MODEL))
        self._turn = 0
        self._steered = dict.fromkeys(SCOPED, 0)

    @contextmanager
    def servers(self, block: Block, *, swapped: bool) -> Iterator[dict[str, Server]]:
        """The servers that ``block`` asks, warm."""
        cores = sorted(os.sched_getaffinity(0))[:2]
        shared = [
            "--max-model-len", "4096", "--max-num-seqs", "256", "--block-size", "32",
            # A CPU without bfloat16 instructions is eight times slower in it.
            "--dtype", "float32",
        ]  # fmt: skip
        if self._eager:
            shared.append("--enforce-eager")
        if len(cores) == 1:
            shared += ONE_PROCESS
        steered = ("--plugin", "palign", "--palign-personas", self._folder / "personas")
        adapters = [f"{name}={path}" for name, path in self._adapters.items()]
        options: dict[str, tuple[str | Path, ...]] = {
            "stock": (),
            ANSWERS: (*steered, "--palign-scope", "answers"),
            ALL: (*steered, "--palign-scope", "all"),
            # One more than are used: vLLM on a CPU gives requests without an adapter the last slot's.
            "lora": (
                "--enable-lora", "--max-lora-rank", "8", "--max-loras", str(ADAPTERS + 1),
                "--lora-modules", *adapters,
            ),
        }  # fmt: skip
        asked = {
            (SERVERS[name] if isinstance(load, Crowd) else chat_server(name)): name
            for _, load in block
            for name in load.variants[::-1]
        }
        servers: dict[str, Server] = {}
        try:
            for name in asked:
                log = self._folder / f"{name}.log"
                servers[name] = Server(MODEL, log, *shared, *options[name])
            for name, server in servers.items():
                server.wait()
                say(f"{name} is up")
            engine, front = (cores[-1], cores[0]) if swapped else (cores[0], cores[-1])
            os.sched_setaffinity(0, {front})
            for server in servers.values():
                server.pin(engine=engine, front=front)
            self._steered = dict.fromkeys(SCOPED, 0)
            for variant in asked.values():
                # Adapters come into memory. Most personas do with their first request, which is measured.
                self._measure(servers, variant, self._prompts.plain(ADAPTERS), 2)
            yield servers
        finally:
            os.sched_setaffinity(0, cores)
            for server in servers.values():
                server.stop()

    def round(self, servers: dict[str, Server], load: Crowd | Chats) -> None:
        """Every variant once. Every other round goes backwards: what drifts with time hits all alike."""
        self._turn += 1
        for name in load.variants if self._turn % 2 else load.variants[::-1]:
            if isinstance(load, Crowd):
                turn = self._crowd(servers, load, name)
                crowds = self._results.crowds.setdefault(load, {one: [] for one in load.variants})
                crowds[name].append(turn)
                seen = f"{turn.tokens_per_second:.1f} tokens/s"
            else:
                system = self._prompts.new_system(CHAT_SYSTEM)
                server = servers[chat_server(name)]
                if name in SCOPED:
                    self._steered[ANSWERS] += CHAT_TURNS * load.users
                # Somebody has asked before.
                converse(server, self._asks(BASE, 1), system, 1, 1, self._turn)
                asks = self._asks(name, load.users)
                turns = converse(server, asks, system, CHAT_TURNS, CHAT_TOKENS, self._turn)
                chats = self._results.chats.setdefault(load, {one: [] for one in load.variants})
                chats[name].append(turns)
                seen = f"{1000 * statistics.median(turns[-1].ttfts):.0f} ms to the last turn's first token"
            say(f"{load}, {name}: {seen}")

    def check_steered(self, servers: dict[str, Server]) -> None:
        """Every request that asked for a persona was answered with one: what the server itself counted."""
        for name in self._steered.keys() & servers.keys():
            counted = servers[name].metric("palign_requests_total", kind="steered")
            if counted != self._steered[name]:
                raise SystemExit(
                    f"{self._steered[name]} requests asked for a persona, {counted:g} were steered"
                )

    def _crowd(self, servers: dict[str, Server], load: Crowd, name: str) -> Turn:
        system = self._prompts.new_system(load.system)
        server = servers[SERVERS[name]]
        # Somebody has asked before.
        measure(server, MODEL, self._prompts.of_people([system]), 2, [], self._folder)
        systems = [system] * load.users
        if name == PROMPT:
            systems = [f"{system}\n{one}" for one in self._prompts.new_people(load.users)]
        prompts = self._prompts.of_people(systems)
        with server.watched() as kv:
            began = server.cpu_seconds()
            outcome = self._measure(servers, name, prompts, TOKENS)
            front, engine = (
                now - then for now, then in zip(server.cpu_seconds(), began, strict=True)
            )
        return Turn(
            **vars(outcome),
            most_blocks=kv.most_blocks,
            found=kv.found,
            front_cpu=front,
            engine_cpu=engine,
        )

    def _measure(
        self, servers: dict[str, Server], name: str, prompts: list[str], tokens: int
    ) -> Outcome:
        self._count(name, len(prompts))
        names = self._names(name, len(prompts))
        return measure(servers[SERVERS[name]], MODEL, prompts, tokens, names, self._folder)

    def _names(self, variant: str, users: int) -> list[str]:
        if variant == ADAPTER:
            return list(self._adapters)[:users]
        if variant in SCOPED:
            return [f"{SERVED}@{persona}" for persona in self._personas[:users]]
        return []

    def _asks(self, variant: str, users: int) -> list[dict[str, Any]]:
        """What a chat's requests ask for, by user."""
        plain = {"model": SERVED}
        if variant not in SCOPED:
            return [plain] * users
        return [
            {**plain, "persona": {"id": persona, "scope": variant}}
            for persona in self._personas[:users]
        ]

    def _count(self, variant: str, requests: int) -> None:
        if variant in SCOPED:
            self._steered[variant] += requests


def chat_server(variant: str) -> str:
    """A chat's body names its scope, so one server takes both."""
    return ANSWERS if variant in SCOPED else SERVERS[variant]


def report(results: Results) -> str:
    crowds = [
        f"\n{load.users} users behind {load.system} tokens, {len(turns[BASE])} rounds\n\n"
        + crowd_table(turns)
        for load, turns in results.crowds.items()
    ]
    chats = [
        f"\nchats, {load.users} at once, {len(turns[BASE])} rounds\n\n" + chats_table(turns)
        for load, turns in results.chats.items()
    ]
    return "\n".join([*crowds, *chats])


def crowd_table(turns: dict[str, list[Turn]]) -> str:
    lines = [
        "| | tokens/s | of stock (quartiles) | TTFT ms (p99) | of stock | TPOT ms (p99) | of stock "
        "| CPU ms a request, API server | engine | both, of stock | KV blocks | of stock | prompt found |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in turns.items():
        stock = turns[BASE]
        lines.append(
            f"| {name} | {statistics.median(one.tokens_per_second for one in own):.1f} "
            f"| {spread(ratios(turns, name, BASE))} "
            f"| {milliseconds([value for one in own for value in one.ttfts])} "
            f"| {spread(quotients([one.ttfts for one in own], [one.ttfts for one in stock]))} "
            f"| {milliseconds([value for one in own for value in one.tpots])} "
            f"| {spread(quotients([one.tpots for one in own], [one.tpots for one in stock]))} "
            f"| {cpu_cells(own, stock)} "
            f"| {statistics.median(one.most_blocks for one in own):.0f} "
            f"| {spread(quotients([[one.most_blocks] for one in own], [[one.most_blocks] for one in stock]))} "
            f"| {statistics.median(one.found for one in own):.3f} |"
        )
    return "\n".join(lines)


def cpu_cells(own: Sequence[Turn], stock: Sequence[Turn]) -> str:
    front, engine = (
        1000 * statistics.median(values)
        for values in (
            [one.front_cpu / len(one.ttfts) for one in own],
            [one.engine_cpu / len(one.ttfts) for one in own],
        )
    )
    both = [[[one.front_cpu + one.engine_cpu] for one in turns] for turns in (own, stock)]
    return f"{front:.1f} | {engine:.0f} | {spread(quotients(*both))}"


def chats_table(turns: dict[str, list[list[ChatTurn]]]) -> str:
    lines = ["| turn | " + " | ".join(f"{name}, TTFT ms (p99)" for name in turns)]
    lines[0] += " | " + " | ".join(f"{name}, tokens computed" for name in turns)
    lines[0] += " | " + " | ".join(f"{name} of stock" for name in turns if name != BASE) + " |"
    lines.append("|---" * (3 * len(turns)) + "|")
    for turn in SHOWN_TURNS:
        firsts = {name: [chat[turn - 1].ttfts for chat in own] for name, own in turns.items()}
        cells = [milliseconds([value for one in own for value in one]) for own in firsts.values()]
        cells += [
            f"{statistics.median(chat[turn - 1].computed for chat in own):.0f}"
            for own in turns.values()
        ]
        cells += [
            spread(quotients(own, firsts[BASE])) for name, own in firsts.items() if name != BASE
        ]
        lines.append(f"| {turn} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quotients(own: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> list[float]:
    """Medians of ``own`` over those of ``base``, round by round."""
    return [
        statistics.median(one) / statistics.median(other)
        for one, other in zip(own, base, strict=True)
    ]


def write(results: Results) -> str:
    rows: list[dict[str, Any]] = [
        {"crowd": asdict(load), "variant": name, "turns": [asdict(turn) for turn in turns]}
        for load, variants in results.crowds.items()
        for name, turns in variants.items()
    ]
    rows += [
        {
            "chats": asdict(load),
            "variant": name,
            "rounds": [[asdict(turn) for turn in chat] for chat in turns],
        }
        for load, chats in results.chats.items()
        for name, turns in chats.items()
    ]
    return json.dumps(rows)


def read(text: str) -> Results:
    """What ``write`` wrote. A round that was broken off counts for nobody."""
    results = Results()
    for row in json.loads(text):
        if "crowd" in row:
            crowd = Crowd(**{**row["crowd"], "variants": tuple(row["crowd"]["variants"])})
            turns = [Turn(**turn) for turn in row["turns"]]
            results.crowds.setdefault(crowd, {})[row["variant"]] = turns
        else:
            chats = Chats(**{**row["chats"], "variants": tuple(row["chats"]["variants"])})
            rounds = [[ChatTurn(**turn) for turn in chat] for chat in row["rounds"]]
            results.chats.setdefault(chats, {})[row["variant"]] = rounds
    return results


if __name__ == "__main__":
    sys.exit(main())
