"""What a run tells its user: personas, weak ones, skipped subjects, and the exit code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from palign_fit.errors import refuse
from palign_fit.inputs.answers import Refusal
from palign_fit.output.population import Fitted, Outcome

MAX_LISTED = 20
"""Personas, warnings and skipped subjects that are printed one by one."""

SKIPPED, WEAK = 1, 3
"""Exit codes."""


class Tally:
    """Counts outcomes; for JSON it keeps every one, as text, which is a tenth of the objects."""

    def __init__(self, subjects: int, *, as_json: bool) -> None:
        self.subjects, self.as_json = subjects, as_json
        self.fitted = self.kept = self.weak = 0
        self.skipped: list[Refusal] = []
        self.first: list[Fitted] = []
        self.alignment = 0.0
        self.last_was_kept = False
        self._lines: list[str] = []

    def add(self, outcome: Outcome) -> None:
        self.last_was_kept = isinstance(outcome, Refusal) or outcome.kept
        if isinstance(outcome, Refusal):
            self.skipped.append(outcome)
            return
        self.fitted += 1
        self.kept += outcome.kept
        self.weak += outcome.weak
        self.alignment += outcome.alignment
        if len(self.first) < MAX_LISTED:
            self.first.append(outcome)
        if self.as_json:
            self._lines.append(json.dumps(asdict(outcome)))

    def tell(self, head: dict[str, Any], *, seconds: float, out: Path) -> None:
        """Print the result, and what is wrong with it. Raises InputError if nobody could be fitted."""
        if not self.fitted:
            reasons = [refusal.reason for refusal in self.skipped]
            raise refuse("--answers", reasons, "No subject can be fitted.")
        if self.as_json:
            rest = {
                **head,
                "fitted": self.fitted,
                "kept": self.kept,
                "weak": self.weak,
                "skipped": [asdict(refusal) for refusal in self.skipped],
                "seconds": round(seconds, 2),
            }
            print(json.dumps(rest)[:-1] + ', "personas": [' + ", ".join(self._lines) + "]}")
            return
        if self.fitted <= MAX_LISTED:
            for persona in self.first:
                print(
                    f"{persona.path}: alpha {persona.alpha:g}, held-out alignment {persona.alignment:.2f} "
                    f"(rank {persona.rank:.2g}), perplexity {persona.perplexity:.1f} "
                    f"(plain {persona.perplexity_plain:.1f})"
                    + (", there already" if persona.kept else "")
                )
        else:
            print(
                f"{out}: {self.fitted} personas"
                + (f" ({self.kept} there already)" if self.kept else "")
                + f", mean held-out alignment {self.alignment / self.fitted:.2f}, "
                f"{self.weak} weak, {len(self.skipped)} skipped, {seconds:.0f} s"
            )
        for persona in self.first:
            for warning in persona.warnings:
                typer.echo(f"warning: {persona.id}: {warning}", err=True)

    def leave(self, *, fail_weak: bool, allow_skipped: bool) -> None:
        """Say what is missing or weak. Raises typer.Exit for skipped subjects that nobody allowed, and with
        ``fail_weak`` for weak personas."""
        for refusal in self.skipped[:MAX_LISTED]:
            typer.echo(f"skipped: {refusal.reason}", err=True)
        if self.skipped:
            typer.echo(
                f"palign-fit: {len(self.skipped)} of {self.subjects} subjects cannot be fitted and "
                "were skipped" + ("" if allow_skipped else "; to accept that, add --allow-skipped"),
                err=True,
            )
        if self.weak:
            typer.echo(
                f"palign-fit: WEAK: {self.weak} of {self.fitted} persona(s) align with held-out "
                "answers no better than many a stranger's. They are written, and marked weak inside. More "
                "answers or a larger model help",
                err=True,
            )
        if self.skipped and not allow_skipped:
            raise typer.Exit(SKIPPED)
        if self.weak and fail_weak:
            raise typer.Exit(WEAK)
