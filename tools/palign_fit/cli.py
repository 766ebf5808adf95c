"""palign-fit: the command line. One module a command, in ``commands``."""

from __future__ import annotations

import typer

from palign_fit.commands.evaluate import evaluate
from palign_fit.commands.inspect import inspect
from palign_fit.commands.inventory import inventory, make_template
from palign_fit.commands.judge import judge
from palign_fit.commands.pairs import pairs
from palign_fit.commands.report import report
from palign_fit.commands.run import run
from palign_fit.commands.traits import traits
from palign_fit.commands.unpack import unpack

app = typer.Typer(
    name="palign-fit",
    help="Fit personas from questionnaire answers, and look at persona files.",
    epilog="Example: palign-fit run --model Qwen/Qwen2.5-1.5B-Instruct --answers alice.json --out personas/",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command(
    epilog="Example: palign-fit run --model HuggingFaceTB/SmolLM2-135M-Instruct "
    "--answers examples/answers.json --out personas/"
)(run)
app.command(
    epilog="Example: palign-fit pairs --model HuggingFaceTB/SmolLM2-135M-Instruct "
    "--pairs examples/pairs_warm.jsonl --out warm.safetensors"
)(pairs)
app.command(
    epilog="Example: palign-fit traits extraversion=+1.5 neuroticism=-0.5 "
    "--model HuggingFaceTB/SmolLM2-135M-Instruct --out x.safetensors"
)(traits)
app.command(
    epilog="Example: palign-fit evaluate --model HuggingFaceTB/SmolLM2-135M-Instruct "
    "--answers examples/answers.json --personas personas/"
)(evaluate)
app.command(
    epilog="Example: palign-fit judge --model HuggingFaceTB/SmolLM2-135M-Instruct --answers "
    "examples/answers.json --personas personas/ --judge-url https://api.openai.com --judge-model gpt-4o"
)(judge)
app.command(epilog="Example: palign-fit inspect personas/alice.safetensors --plot alice.png")(
    inspect
)
app.command(
    epilog="Example: palign-fit report personas/ --evaluation evaluation.json --model MODEL"
)(report)
app.command(epilog="Example: palign-fit unpack shards/ s41 s977 --out personas/")(unpack)
app.command(epilog="Example: palign-fit inventory --out items.csv")(inventory)
app.command("template", epilog="Example: palign-fit template --out answers.json")(make_template)


def main() -> None:
    app()
