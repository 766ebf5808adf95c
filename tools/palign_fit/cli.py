"""palign-fit: the command line. One module a command, in ``commands``."""

from __future__ import annotations

from collections.abc import Callable

import typer

from palign_fit.commands.ask import ask
from palign_fit.commands.directions import directions
from palign_fit.commands.evaluate import evaluate
from palign_fit.commands.inspect import inspect
from palign_fit.commands.inventory import inventory, make_template
from palign_fit.commands.judge import judge
from palign_fit.commands.pairs import pairs
from palign_fit.commands.report import report
from palign_fit.commands.run import run
from palign_fit.commands.traits import traits
from palign_fit.commands.try_persona import try_persona
from palign_fit.commands.unpack import unpack

_MODEL = "--model HuggingFaceTB/SmolLM2-135M-Instruct"
_ANSWERS = f"{_MODEL} --answers examples/answers.json"

COMMANDS: dict[Callable[..., None], str] = {
    run: f"run {_ANSWERS} --out personas/",
    directions: f"directions {_MODEL} --out smollm2.directions.safetensors",
    pairs: f"pairs {_MODEL} --pairs examples/pairs_warm.jsonl --out warm.safetensors",
    traits: f"traits extraversion=+1.5 neuroticism=-0.5 {_MODEL} --out lively.safetensors",
    evaluate: f"evaluate {_ANSWERS} --personas personas/",
    judge: f"judge {_ANSWERS} --personas personas/ --judge-url https://api.openai.com --judge-model gpt-4o",
    try_persona: f'try personas/alice.safetensors "How do you feel about meeting new people?" {_MODEL}',
    inspect: "inspect personas/alice.safetensors --plot alice.png",
    report: f"report personas/ --evaluation evaluation.json {_MODEL}",
    unpack: "unpack shards/ s41 s977 --out personas/",
    inventory: "inventory --out items.csv",
    make_template: "template --out answers.json",
    ask: "ask --form 30 --out dana.json",
}
"""Each command and its example, whose first word is its name."""

app = typer.Typer(
    name="palign-fit",
    help="Fit personas from questionnaire answers, and look at persona files.",
    epilog=f"Example: palign-fit {COMMANDS[run]}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command, example in COMMANDS.items():
    app.command(example.split()[0], epilog=f"Example: palign-fit {example}")(command)


def main() -> None:
    app()
