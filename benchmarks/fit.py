"""What fitting costs: beside the procedure of the published code, and for whole populations.

    python benchmarks/fit.py [--subjects N] [--sizes N,N,...] [--large N] [--out FILE]

1. Reference: the steps of zhu-minjun/PAlign (main.py process_pas) on the same model in this process:
   the activations of 240 option prompts once; for each subject scikit-learn's logistic probes for every
   head, then alpha from {0, 1, 2, 4, 6, 8} by generating answers to 180 test items in batches of 10, with
   all 120 answers in the system prompt. Probes are measured whole, generations on a few batches and
   multiplied by their number, 108 a subject.
2. palign-fit, same process, what subjects share included, nothing from the cache: with alpha and held-out
   figures checked by real forward passes, and to first order only (``--no-check``).
3. ``palign-fit run --shards --no-check`` on synthetic populations, each in a process of its own: seconds,
   peak memory, a straight line through them, and 300,000 subjects extrapolated. What subjects share they
   find in the cache that part 2 filled; it comes on top where there is none.

Synthetic subjects: five traits and thirty facets drawn from normal distributions, plus noise an item.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from palign_fit.fit import Fitter, open_fitter
from palign_fit.inputs.answers import Answers
from palign_fit.inputs.inventory import built_in
from palign_fit.methods.settings import Settings
from palign_fit.model import prompts
from palign_fit.model.cache import Cache, ModelCache
from palign_fit.model.continuations import collect
from palign_fit.model.model import OpenedModel, open_model
from palign_fit.model.steer import steered_by
from palign_fit.output.folder import FolderOutput
from palign_fit.output.population import Fitted, Job, fit_population

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.traits import TRAITS

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".demo" / "SmolLM2-135M-Instruct"
ALPHAS = (0, 1, 2, 4, 6, 8)
TEST_ITEMS, BATCH, NEW_TOKENS, HEADS = 180, 10, 15, 24
BATCHES = len(ALPHAS) * TEST_ITEMS // BATCH
TRIED = (1, 4, 8)
"""Alphas of which one batch is generated."""

OPTIONS = {
    5: "Very Accurate",
    4: "Moderately Accurate",
    3: "Neither Accurate Nor Inaccurate",
    2: "Moderately Inaccurate",
    1: "Very Inaccurate",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=150, help="of part 2")
    parser.add_argument("--reference-subjects", type=int, default=2, help="0 leaves part 1 out")
    parser.add_argument("--sizes", default="1000,3000,10000,30000", help="of part 3")
    parser.add_argument("--large", type=int, default=100_000, help="one more; 0 leaves it out")
    parser.add_argument("--memory", type=float, default=4.0, help="GB, given to part 3")
    parser.add_argument("--out", type=Path, default=ROOT / ".demo" / "bench-fit.json")
    options = parser.parse_args()
    subprocess.run(
        [sys.executable, ROOT / "tools" / "demo_model.py", MODEL], check=True, stdout=sys.stderr
    )
    inventory = built_in()
    result: dict[str, Any] = {"model": MODEL.name, "threads": os.environ.get("OMP_NUM_THREADS")}
    model = open_model(str(MODEL), device="cpu")
    if options.reference_subjects:
        people = synthetic(inventory, options.reference_subjects, 1)
        result["reference"] = reference(model, inventory, people)
    sizes = [int(size) for size in options.sizes.split(",") if size]
    sizes += [options.large] if options.large else []
    with tempfile.TemporaryDirectory() as kept:
        people = synthetic(inventory, options.subjects, 2)
        result["ours"] = ours(model, inventory, people, Path(kept))
        del model
        result["populations"] = [
            population(inventory, size, options.memory, Path(kept)) for size in sizes
        ]
    result |= summary(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


def synthetic(inventory: Inventory, count: int, seed: int) -> Answers:
    """``count`` people of a trait model: keyed answer = 3.4 + trait + facet + noise, rounded, 1..5."""
    rng = np.random.default_rng(seed)
    items = inventory.items
    facets = sorted({(item.trait, item.facet) for item in items})
    of_trait = np.array([TRAITS.index(item.trait) for item in items])
    of_facet = np.array([facets.index((item.trait, item.facet)) for item in items])
    sign = np.array([item.sign for item in items])
    keyed = (
        0.4
        + 0.6 * rng.normal(size=(count, 5))[:, of_trait]
        + 0.4 * rng.normal(size=(count, len(facets)))[:, of_facet]
        + 0.9 * rng.normal(size=(count, len(items)))
    )
    table = np.clip(np.rint(3 + sign * keyed), 1, 5).astype(np.uint8)
    return Answers([f"s{n}" for n in range(count)], table)


def reference(model: OpenedModel, inventory: Inventory, people: Answers) -> dict[str, float]:
    """Seconds of the published procedure's steps, a subject each."""
    began = time.perf_counter()
    activations = option_activations(model, inventory)
    shared = time.perf_counter() - began
    probes, batches = [], []
    for subject in people:
        began = time.perf_counter()
        layers, heads, offsets = probe_heads(activations, subject.agreement)
        probes.append(time.perf_counter() - began)
        prompt_ids = question_batch(model, inventory, subject.agreement)
        for alpha in TRIED:
            began = time.perf_counter()
            with steered_by(model, layers, heads, np.float32(alpha) * offsets):
                generate(model, prompt_ids)
            batches.append(time.perf_counter() - began)
    generation = float(np.mean(batches)) * BATCHES
    return {
        "subjects": len(people),
        "activations": shared,
        "probes": float(np.mean(probes)),
        "batches_measured": len(batches),
        "generation": generation,
        "per_subject": float(np.mean(probes)) + generation,
    }


def option_activations(model: OpenedModel, inventory: Inventory) -> Any:
    """Head outputs at the answer letter, float32 [N, 2, L, H, D]."""
    lines = [
        prompts.chat_prefix(model.tokenizer, prompts.OPTION_PROMPT.format(statement=item.text))
        + prompts.continuation(model.tokenizer, f"({letter}")
        for item in inventory.items
        for letter in prompts.OPTION_LETTERS
    ]
    found = collect(model, lines[0][:1], [line[1:] for line in lines])
    return found.reshape(-1, 2, *found.shape[1:])


def probe_heads(activations: Any, agreement: Any) -> tuple[Any, Any, Any]:
    """Layers, heads, offsets of the published selection: one logistic probe a head."""
    from sklearn.linear_model import LogisticRegression

    decided = np.isfinite(agreement) & (agreement != 3)
    rows = activations[decided].reshape(-1, *activations.shape[2:])
    agrees = agreement[decided] > 3
    labels = np.stack([agrees, ~agrees], 1).ravel()
    rng = np.random.default_rng(0)
    train = np.zeros(len(rows), bool)
    train[rng.choice(len(rows), int(len(rows) * 0.6), replace=False)] = True
    _, num_layers, num_heads, _ = rows.shape
    scores = np.zeros((num_layers, num_heads))
    for layer, head in np.ndindex(num_layers, num_heads):
        x = rows[:, layer, head]
        probe = LogisticRegression(random_state=42, max_iter=1000).fit(x[train], labels[train])
        scores[layer, head] = (
            probe.score(x[~train], labels[~train]) + probe.score(x[train], labels[train])
        ) / 2
    best = np.sort(np.argsort(scores.ravel())[::-1][:HEADS])
    layers, heads = np.unravel_index(best, scores.shape)
    chosen = rows[:, layers, heads]
    direction = chosen[labels].mean(0) - chosen[~labels].mean(0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    spread = np.einsum("nkd,kd->nk", chosen, direction).std(0)
    return layers, heads, (direction * spread[:, None]).astype(np.float32)


def question_batch(model: OpenedModel, inventory: Inventory, agreement: Any) -> list[list[int]]:
    """Ten option prompts below a system prompt of all the subject's answers."""
    known = ";".join(
        f"{item.text}:{OPTIONS[int(value)]}"
        for item, value in zip(inventory.items, agreement, strict=True)
        if np.isfinite(value)
    )
    system = f"These are things you do, and how well each describes you: {known}"
    return [
        list(
            model.tokenizer.apply_chat_template(
                [
                    {"role": "system", "content": system},
                    {
                        "role": "user",
                        "content": prompts.OPTION_PROMPT.format(statement=item.text),
                    },
                ],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
        )
        for item in inventory.items[:BATCH]
    ]


def generate(model: OpenedModel, lines: Sequence[list[int]]) -> None:
    """Greedy answers, left-padded and cached: no slower than the published loop over tokens."""
    import torch

    width = max(map(len, lines))
    ids = torch.zeros(len(lines), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, line in enumerate(lines):
        ids[row, width - len(line) :] = torch.tensor(line)
        mask[row, width - len(line) :] = 1
    with torch.inference_mode():
        model.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
        )


def ours(model: OpenedModel, inventory: Inventory, people: Answers, kept: Path) -> dict[str, float]:
    """Seconds of palign-fit for ``people``, one file each, shared work told apart and left in ``kept``."""
    began = time.perf_counter()
    known = ModelCache.of(model, Cache(kept))

    def opened(*, check: bool) -> Fitter:
        settings = Settings(check=check)
        return open_fitter(model, inventory, people.used, settings, known)

    fitter = opened(check=True)
    shared = time.perf_counter() - began
    unchecked = opened(check=False)
    fitting, fitted = timed_fit(fitter, people)
    estimating, _ = timed_fit(unchecked, people)
    return {
        "subjects": len(people),
        "shared": shared,
        "fitting": fitting,
        "per_subject": (shared + fitting) / len(people),
        "estimating": estimating,
        "per_subject_unchecked": (shared + estimating) / len(people),
        "weak": sum(one.weak for one in fitted),
        "alignment": float(np.mean([one.alignment for one in fitted])),
    }


def timed_fit(fitter: Fitter, people: Answers) -> tuple[float, list[Fitted]]:
    """Seconds for a file each, and what was fitted."""
    order = Job(run={}, name=None, description="", refused={})
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = FolderOutput(Path(folder), len(people))
        outcomes = list(fit_population(people, lambda: fitter, order, output))
    return time.perf_counter() - began, [one for one in outcomes if isinstance(one, Fitted)]


def population(inventory: Inventory, size: int, memory: float, kept: Path) -> dict[str, float]:
    """Seconds and peak memory of the command on ``size`` synthetic subjects, cache in ``kept``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "answers.jsonl").open("w") as file:
            file.writelines(f"{line}\n" for line in json_lines(inventory, size))
        began = time.perf_counter()
        process = subprocess.Popen(
            [
                sys.executable, "-m", "palign_fit", "run", "--model", MODEL, "--device", "cpu",
                "--answers", folder / "answers.jsonl", "--out", folder / "out", "--cache", kept,
                "--shards", "1000", "--memory", str(memory), "--no-check", "--allow-skipped",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"palign-fit run on {size} subjects ended with {process.returncode}")
        written = sum(one.stat().st_size for one in (folder / "out").iterdir())
    row = {
        "subjects": size,
        "seconds": seconds,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "bytes_per_subject": written / size,
    }
    print(f"{size} subjects: {seconds:.1f} s, {row['peak_gb']:.2f} GB", file=sys.stderr)
    return row


def json_lines(inventory: Inventory, count: int) -> Iterator[str]:
    names = [item.id for item in inventory.items]
    people = synthetic(inventory, count, 3)
    for name, row in zip(people.ids, people.table.tolist(), strict=True):
        yield json.dumps({"id": name, "answers": dict(zip(names, row, strict=True))})


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """The ratio of parts 1 and 2, and the straight line of part 3."""
    found: dict[str, Any] = {}
    if "reference" in result:
        each = result["reference"]["activations"] / result["ours"]["subjects"]
        reference = result["reference"]["per_subject"] + each
        found["times_less"] = reference / result["ours"]["per_subject"]
        found["times_less_unchecked"] = reference / result["ours"]["per_subject_unchecked"]
    rows = result["populations"]
    if len(rows) > 1:
        sizes, seconds = np.array([(row["subjects"], row["seconds"]) for row in rows]).T
        slope, start = np.polyfit(sizes, seconds, 1)
        off = np.abs(start + slope * sizes - seconds) / seconds
        found["line"] = {
            "start_s": float(start),
            "ms_per_subject": float(slope * 1e3),
            "worst_relative_error": float(off.max()),
            "hours_for_300000": float((start + slope * 300_000) / 3600),
        }
    return found


def table(result: dict[str, Any]) -> str:
    lines = []
    ours = result["ours"]
    if "reference" in result:
        one = result["reference"]
        lines += [
            f"reference, {one['subjects']} subjects: probes {one['probes']:.2f} s, 1,080 generations "
            f"{one['generation']:.0f} s (from {one['batches_measured']} of {BATCHES} batches), "
            f"together {one['per_subject']:.0f} s a subject; activations {one['activations']:.1f} s once",
        ]
    lines += [
        f"palign-fit, {ours['subjects']} subjects, alpha included: shared {ours['shared']:.1f} s once",
        f"  checked by forward passes: {ours['fitting']:.1f} s more, {ours['per_subject']:.3f} s a "
        f"subject in all; mean held-out alignment {ours['alignment']:.2f}, {ours['weak']} weak",
        f"  --no-check: {ours['estimating']:.2f} s more, {ours['per_subject_unchecked']:.3f} s a "
        "subject in all",
    ]
    if "times_less" in result:
        lines.append(
            f"time per subject: {result['times_less']:,.0f} times less, --no-check "
            f"{result['times_less_unchecked']:,.0f} times"
        )
    if result["populations"]:
        lines += [
            "",
            "palign-fit run --shards --no-check (what is shared comes from the cache)",
        ]
        lines += [f"{'subjects':>10} {'seconds':>9} {'ms each':>8} {'peak GB':>8}"]
        lines += [
            f"{row['subjects']:>10,} {row['seconds']:>9.1f} "
            f"{1e3 * row['seconds'] / row['subjects']:>8.2f} {row['peak_gb']:>8.2f}"
            for row in result["populations"]
        ]
    if "line" in result:
        line = result["line"]
        lines.append(
            f"straight line, cached: {line['start_s']:.1f} s + {line['ms_per_subject']:.2f} ms a subject, off by "
            f"{line['worst_relative_error']:.0%} at most; 300,000 extrapolated: "
            f"{line['hours_for_300000']:.2f} h"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
