"""``palign verify``: does steering work on this machine, with this model?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_palign.verify.checks import Check, compare, judge
from vllm_palign.verify.engine import Observed
from vllm_palign.verify.shapes import Shape, write_shape
from vllm_palign.verify.subjects import Subject

EAGER = "eager"
_ENVIRONMENT = {
    "VLLM_PLUGINS": "palign",
    # The worker is looked into, and a GPU's memory is free when its process has ended.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def verify(
    model: Annotated[
        str | None, typer.Argument(help="A model's folder or Hugging Face id.", metavar="MODEL")
    ] = None,
    shape: Annotated[
        Shape | None, typer.Option(help="Instead of MODEL: this shape with random weights.")
    ] = None,
    eager: Annotated[
        bool, typer.Option("--eager", help="Eager mode alone: quick, proves no compiled graph.")
    ] = False,
    bench: Annotated[
        bool, typer.Option("--bench", help="Also time it beside stock vLLM (minutes).")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object to stdout.")
    ] = False,
) -> None:
    """Start vLLM as it would serve MODEL here, steer it, and report what was proven and what was not.

    On a GPU with CUDA graphs FULL and PIECEWISE, and eager as the reference; on a CPU compiled and eager.
    Exit code 1 if a check failed.
    """
    if (model is None) == (shape is None):
        raise typer.BadParameter("give a MODEL or --shape, one of them")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = (
            Subject(str(write_shape(shape, folder / shape)), dummy=True)
            if shape is not None
            else Subject(str(model), dummy=False)
        )
        report = _report(subject, folder, eager=eager)
        if bench and not report["failed"]:
            report["timings"] = _run(
                "timing", {"subject": asdict(subject), "eager": eager}, folder, "timing"
            )
            report["failed"] |= "error" in report["timings"]
    if shape is not None:
        for engine in report["engines"].values():
            engine["environment"]["model"] = f"{shape.value} (random weights)"
    typer.echo(json.dumps(report) if as_json else text(report))
    raise typer.Exit(int(report["failed"]))


def _report(subject: Subject, folder: Path, *, eager: bool) -> dict[str, Any]:
    engines: dict[str, dict[str, Any]] = {}
    seen: dict[str, Observed] = {}
    for mode, compilation in _modes(eager).items():
        result = _run(
            "engine", {"subject": asdict(subject), "compilation": compilation}, folder, mode
        )
        if "error" in result:
            checks = [Check("the engine starts and answers", "FAILED", result["error"])]
            engines[mode] = {"environment": {}, "checks": checks}
            continue
        seen[mode] = Observed(**result)
        engines[mode] = {"environment": seen[mode].environment, "checks": judge(seen[mode])}
    for mode, observed in seen.items():
        if mode != EAGER and EAGER in seen:
            engines[mode]["checks"].append(compare(observed, seen[EAGER]))
    failed = any(
        check.verdict == "FAILED" for engine in engines.values() for check in engine["checks"]
    )
    for engine in engines.values():
        engine["checks"] = [asdict(check) for check in engine["checks"]]
    return {"failed": failed, "engines": engines}


def _modes(eager: bool) -> dict[str, dict[str, Any] | None]:
    """Name -> vLLM's ``compilation_config``; None is eager."""
    if eager:
        return {EAGER: None}
    import torch

    if torch.cuda.is_available():
        graphs = {mode: {"cudagraph_mode": mode} for mode in ("FULL", "PIECEWISE")}
        return {**graphs, EAGER: None}
    return {"compiled": {}, EAGER: None}


def _run(module: str, job: dict[str, Any], folder: Path, title: str) -> dict[str, Any]:
    """The result of a module of ``verify`` in a process of its own; what vLLM says goes to a log."""
    typer.echo(f"palign verify: {title} ...", err=True)
    job_file, result_file, log = (folder / f"{title}.{kind}" for kind in ("job", "json", "log"))
    job_file.write_text(json.dumps(job))
    with log.open("wb") as out:
        subprocess.run(
            [sys.executable, "-m", f"vllm_palign.verify.{module}", job_file, result_file],
            stdout=out, stderr=out, check=False,
            env={"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, **_ENVIRONMENT},
        )  # fmt: skip
    if not result_file.exists():
        return {"error": f"its process ended; the end of its log:\n{log.read_text()[-2000:]}"}
    result: dict[str, Any] = json.loads(result_file.read_text())
    if "error" in result:
        typer.echo(log.read_text(errors="replace")[-4000:], err=True)
    return result


def text(report: dict[str, Any]) -> str:
    """The report block, to paste into an issue."""
    lines = []
    for mode, engine in report["engines"].items():
        facts = engine["environment"]
        lines.append(f"== {mode}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        lines += [
            f"{check['verdict']:>11}  {check['name']}: {check['detail']}"
            for check in engine["checks"]
        ]
    lines += report.get("timings", {}).get("lines", [])
    if "error" in report.get("timings", {}):
        lines.append(f"     FAILED  timings: {report['timings']['error']}")
    lines.append("FAILED" if report["failed"] else "every check that was made passed")
    return "\n".join(lines)
