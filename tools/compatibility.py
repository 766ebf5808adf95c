"""docs/compatibility.md from what the suite has shown (``make compatibility``).

python tools/compatibility.py                write the page from docs/data/compatibility.json
python tools/compatibility.py --merge FILE   first put into the data what a run of some of the tests
                                             wrote to FILE, and drop what the suite shows no more
python tools/compatibility.py --check        fail if the page is not what the data say, or if the suite
                                             shows other rows than the data have
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"

Row = dict[str, Any]

HEAD = """\
# Compatibility

Made by `make compatibility` from the results of the test suite; do not edit. `make check` fails if a feature is
tested and not listed here, or the other way round.

Every row is a test on the real engine, on a CPU, in float32, with tiny random models whose weights, biases and norms are all
non-trivial. *Error* is the largest |difference of log-probabilities|, over the whole vocabulary, between a steered request and
the reference method in plain Hugging Face (`o_proj.bias += W_o d`), or between a plain request in the same batch and
Hugging Face or stock vLLM. *Effect* is the least that steering itself moved the log-probabilities of a steered answer: what
an answer without the persona, or with another's, would be off by. The bound is 1e-4, but for rows marked inexact. vLLM's releases: [versions.md](versions.md).
"""

FEATURES = """
## Features

One batch of four: a plain request, two personas (one with negative strength) and a blend. V2 is vLLM's runner for GPUs, run
here through the Triton interpreter, in one process. Rows asked over HTTP (clients that leave, data parallel, stop strings,
structured output, tool calls) compare the log-probabilities of the answers' tokens.
"""

FAMILIES = """
## Model families

Two layers (three where the family needs them), 2 or 4 heads of 32, both sliding and full attention where the family has them. Families
that vLLM has no class for run through its Transformers backend.
"""

REFUSALS = """
## Refused

At start, or the request with a 400: never a plain answer. A test asks for each.
"""

NOT_HERE = """
## Not on a CPU

What vLLM's CPU build says when asked. palign's part in it is therefore not proven here.
"""

UNPROVEN = """
## Not proven

- CUDA graphs, GPU kernels, and anything that has to do with a GPU's memory: no GPU was at hand. `docs/serving.md` says what
  is designed for them.
- Pipeline parallelism on the V2 runner: it takes several processes, and the Triton interpreter runs in one here. Its
  start-up self-test covers the last rank only.
- Asynchronous scheduling under load: vLLM turns it off on a CPU ("not required"), and where the test turns it on
  again there is no second stream to overlap with.
- EAGLE, MTP and other drafters that read the target's hidden states; prefill/decode disaggregation; context parallelism
  for decoding; expert parallelism.
- MLA on the kernels of GPUs and of CPUs with AMX. On a CPU vLLM 0.32 serves MLA models without YaRN wrongly, steered or
  not: its rotary kernel turns their heads by wrong angles. `--compilation-config '{"custom_ops": ["-rotary_embedding"]}'`
  leaves that kernel out, as the rows above do; DeepSeek's own checkpoints have YaRN and never meet it.
- Gemma 3n, LFM2, LFM2-MoE, ERNIE 4.5 MoE, Doge: hooked and self-tested; stock vLLM differs from Hugging Face by more than 1 on
  the tiny models that were tried.
- Qwen3-Next does not start here: on a CPU vLLM runs it in bfloat16 only, and the self-test sees no effect of the probe. Jamba
  and OLMo Hybrid fail in vLLM's CPU kernels. Qwen3.5 and multimodal wrappers need a torchvision that fits the CPU
  torch.
- Persimmon and BioGPT, through vLLM's Transformers backend: refused, because the projection is not found.
- Real checkpoints of the families: the tiny models have their code and their shapes, not their sizes. SmolLM2 is tested
  with its real weights (README).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--merge", type=Path, metavar="FILE", help="results of a part of the suite")
    arguments = parser.parse_args()
    rows: list[Row] = json.loads(DATA.read_text())
    if arguments.merge:
        rows = merged(rows, json.loads(arguments.merge.read_text()))
    failed = [row["test"] for row in rows if row["outcome"] != "passed"]
    if failed:
        print("not passed, so not documented:", *failed, sep="\n  ", file=sys.stderr)
        return 1
    page = render(rows)
    if not arguments.check:
        DATA.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page)
        return 0
    problems = list(differences(rows, page))
    print(*problems, sep="\n", file=sys.stderr)
    if problems:
        print("run make compatibility", file=sys.stderr)
    return bool(problems)


def merged(rows: list[Row], new: list[Row]) -> list[Row]:
    """``rows`` with ``new`` in the place of what the same tests showed before."""
    shown = {_evidence(row): row for row in [*rows, *new]}
    kept = {_evidence(row) for row in collect()}
    return sorted(
        (row for evidence, row in shown.items() if evidence in kept),
        key=lambda row: (list(_TABLES).index(row["table"]), row["row"], row["runner"], row["test"]),
    )


def differences(rows: list[Row], page: str) -> Iterator[str]:
    """What page, data and suite do not agree on."""
    if PAGE.read_text() != page:
        yield f"{PAGE.name} is not what {DATA.name} says"
    documented, shown = _keys(rows), _keys(collect())
    for name in sorted(shown - documented):
        yield f"shown by the suite, not in the data: {' / '.join(name)}"
    for name in sorted(documented - shown):
        yield f"in the data, not shown by the suite: {' / '.join(name)}"


def collect() -> list[Row]:
    """The rows that the suite would show, without running it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-m",
            "shows",
            f"--shown={file}",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        rows: list[Row] = json.loads(file.read_text())
        return rows


def render(rows: list[Row]) -> str:
    tables = {name: [row for row in rows if row["table"] == name] for name in _TABLES}
    parts = [HEAD]
    for name, (text, table) in _TABLES.items():
        parts += [text, *table(tables[name])]
    return "\n".join([*parts, UNPROVEN.rstrip()]) + "\n"


def _features(rows: list[Row]) -> Iterator[str]:
    yield "| feature | runner | error | effect | how |"
    yield "|---|---|---|---|---|"
    for (name, runner), group in _grouped(rows, "row", "runner"):
        yield f"| {name} | {runner.upper()} | {_error(group)} | {_effect(group)} | {group[0]['note']} |"


def _families(rows: list[Row]) -> Iterator[str]:
    yield "| family | error | effect | kind |"
    yield "|---|---|---|---|"
    for (name,), group in _grouped(rows, "row"):
        yield f"| {name} | {_error(group)} | {_effect(group)} | {group[0]['note']} |"


def _said(rows: list[Row]) -> Iterator[str]:
    yield "| what | what is said |"
    yield "|---|---|"
    for (name,), group in _grouped(rows, "row"):
        said = next((row["said"] for row in group if "said" in row), group[0]["note"])
        yield f"| {name} | {said.splitlines()[0].replace('|', chr(92) + '|')} |"


_TABLES = {
    "features": (FEATURES, _features),
    "families": (FAMILIES, _families),
    "refusals": (REFUSALS, _said),
    "not on CPU": (NOT_HERE, _said),
}


def _grouped(rows: list[Row], *keys: str) -> Iterable[tuple[tuple[str, ...], list[Row]]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups.items()


def _evidence(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("table", "row", "runner", "note", "test"))


def _keys(rows: list[Row]) -> set[tuple[str, ...]]:
    return {(row["table"], row["row"], row["runner"], row["note"]) for row in rows}


def _error(group: list[Row]) -> str:
    errors = [
        error
        for row in group
        for name, error in row.get("measured", {}).items()
        if name != "effect"
    ]
    return f"{max(errors):.1e}" if errors else "same text"


def _effect(group: list[Row]) -> str:
    effects = [row["measured"]["effect"] for row in group if "effect" in row.get("measured", {})]
    return f"{min(effects):.2g}" if effects else ""


if __name__ == "__main__":
    sys.exit(main())
