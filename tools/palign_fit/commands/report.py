"""palign-fit report: a folder of personas as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import check_file, opened_model, with_exit_codes
from palign_fit.inputs.files import write_text
from palign_fit.progress import show_progress


@with_exit_codes
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of persona files.")],
    evaluation: Annotated[
        Path | None, typer.Option(help="What palign-fit evaluate --json printed.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Also ask this model: sample answers, missing alpha curves.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Page to write; default: report.html in DIR.")
    ] = None,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    memory: options.Memory = None,
    as_json: options.Json = False,
) -> None:
    """Show a folder of personas as one HTML page that needs no network."""
    from palign_fit.reporting.evaluated import read_evaluation
    from palign_fit.reporting.page import overview, render
    from palign_fit.reporting.sources import read_folder

    sources = read_folder(folder)
    target = out or folder / "report.html"
    check_file("--out", target)
    measured = read_evaluation(evaluation) if evaluation else None
    rows = overview(sources, measured)
    spoken, asked, left_out = {}, None, list(sources.left_out)
    if model is not None:
        from palign_fit.reporting import samples

        with show_progress() as progress:
            opened = opened_model(progress, model, device, dtype, memory=memory)
            detailed = [row.entry for row in rows if row.detailed]
            chosen = samples.chosen(detailed, opened)
            asked = opened.base_model
            left_out += samples.left_out(detailed, chosen, opened)
            spoken = samples.speak(opened, chosen, progress)
    page = render(
        folder.resolve().name, sources, rows,
        evaluation=measured, spoken=spoken, model=asked, left_out=left_out,
    )  # fmt: skip
    write_text(target, page)
    summary = {
        "path": str(target),
        "bytes": len(page.encode()),
        "personas": len(rows),
        "weak": sum(row.entry.record.weak for row in rows),
        "detailed": sum(row.detailed for row in rows),
        "evaluated": sum(row.profile is not None for row in rows),
        "sampled": len(spoken),
        "unreadable": dict(sources.unreadable),
        "left_out": left_out,
    }
    for line in left_out:
        typer.echo(f"palign-fit: left out: {line}", err=True)
    if as_json:
        print(json.dumps(summary))
    else:
        print(
            f"{target}: {len(rows)} persona(s), {summary['detailed']} with pictures; open it in a browser"
        )
