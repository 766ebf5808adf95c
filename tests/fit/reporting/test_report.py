"""The HTML page: whole, self-contained, accessible, and nothing from a file gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from palign_fit.cli import app
from palign_fit.errors import InputError
from palign_fit.reporting import samples, sources
from palign_fit.reporting.charts import Axis
from palign_fit.reporting.evaluated import read_evaluation
from palign_fit.reporting.page import overview, render
from typer.testing import CliRunner, Result

from tests.fit.conftest import HEAD_DIM, HEADS, LAYERS, answer_sheet
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import Persona, load, save

VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}\u202e\x07LONE_SG"


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def persona(name: str = "ann", **changes: Any) -> Persona:
    """Two steered heads of the tiny model."""
    fields: dict[str, Any] = {
        "layers": np.array([0, 2], np.int32),
        "heads": np.array([1, 3], np.int32),
        "offsets": np.linspace(-1, 1, 2 * HEAD_DIM, dtype=np.float32).reshape(2, HEAD_DIM),
        "alpha": 2.0,
        "base_model": "tiny-fit",
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "head_dim": HEAD_DIM,
        "method": "palign",
    }
    return Persona(name=name, **fields | changes)


class Page(HTMLParser):
    """Reads a page as strictly as a browser would not: every tag is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


def pictures(text: str) -> Iterator[ElementTree.Element]:
    for source in re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL):
        yield ElementTree.fromstring(source)


@pytest.fixture(scope="module")
def evaluated(
    tiny_checkpoint: Path, inventory: Inventory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A folder with the personas of ann and ben, evaluation.json beside it, and what that says."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("ann", "ben"):
        (folder / "personas").mkdir(exist_ok=True)
        save(persona(name), folder / "personas" / f"{name}.safetensors")
    rows = [
        {"id": name, "answers": answer_sheet(inventory, n)} for n, name in enumerate(["ann", "ben"])
    ]
    (folder / "answers.json").write_text(json.dumps(rows))
    result = CliRunner().invoke(
        app,
        ["evaluate", "--model", str(tiny_checkpoint), "--device", "cpu", "--answers",
         str(folder / "answers.json"), "--personas", str(folder / "personas"), "--json",
         "--conditions", "plain,palign", "--measures", "statements"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (folder / "evaluation.json").write_text(result.stdout)
    return folder, json.loads(result.stdout)


def test_one_page_shows_everything_and_needs_nothing_else(
    evaluated: tuple[Path, dict[str, Any]], tiny_checkpoint: Path
) -> None:
    folder, measured = evaluated
    arguments = (
        folder / "personas", "--evaluation", folder / "evaluation.json",
        "--model", tiny_checkpoint, "--device", "cpu", "--json",
    )  # fmt: skip
    result = report(*arguments)
    assert result.exit_code == 0, result.output
    path = folder / "personas" / "report.html"
    text = path.read_text()
    assert json.loads(result.stdout) == {
        "path": str(path), "bytes": len(text.encode()), "personas": 2, "weak": 0, "detailed": 2,
        "evaluated": 2, "sampled": 2, "unreadable": {}, "left_out": [],
    }  # fmt: skip
    page = Page(text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv")) or ""
    assert policy.startswith("default-src 'none'; ")
    for name in ("style", "script"):
        (source,) = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    outside = {"src", "srcset", "action", "data", "style", "background", "poster", "xlink:href"}
    for _, attributes in page.tags:
        assert not outside & set(attributes) and not [one for one in attributes if one[:2] == "on"]
        assert (attributes.get("href") or "#")[0] == "#"
    assert "url(" not in text and "@import" not in text
    own = measured["conditions"]["palign"]
    target = measured["subjects"][1]["traits"]["E"]["target"]
    steered = own["traits"]["E"]["from_statements"][1]
    assert f"<td>{target:.2f}</td>" in text
    assert f"<td>{steered:.2f}</td>" in text
    assert f"<td>{own['measures']['error']['per_subject'][1]:.2f}</td>" in text
    for question in samples.ASKED:
        assert text.count(question.text) == 2
    assert "measured for this page" in text  # these files record no alphas


def test_every_picture_and_table_has_a_name_for_those_who_cannot_see_it(
    evaluated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = evaluated
    fit = {
        "scores": [0.2, 0.3],
        "alphas": [{"alpha": a, "effect": a / 10, "perplexity": 20.0 + a} for a in (1, 2, 4)],
        "perplexity_plain": 20.5,
        "max_perplexity_ratio": 1.15,
    }
    for name in ("ann", "ben"):
        save(persona(name, fit=fit), tmp_path / f"{name}.safetensors")
    for name in ("a.html", "b.html"):
        arguments = ("--evaluation", folder / "evaluation.json", "--out", tmp_path / name)
        assert report(tmp_path, *arguments).exit_code == 0
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = list(pictures(text))
    assert len(charts) == 2 * 4  # head map, scores, alpha, radar
    for chart in charts:
        named = (chart.get("aria-labelledby") or "").split()
        assert chart.get("role") == "img"
        assert [one.get("id") for one in list(chart)[:2]] == named
        assert all(len(one.text or "") > 8 for one in list(chart)[:2])
        assert "nan" not in ElementTree.tostring(chart, "unicode").lower()
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert "steered with another file of this name" in text


def test_hostile_records_are_text_or_left_out(tmp_path: Path) -> None:
    junk: list[Any] = [EVIL, None, [], {}, [EVIL] * 99, 10**400, -1, True, [{"alpha": 10**400}]]
    keys = ["alphas", "scores", "alignment", "rank", "effect", "perplexity", "perplexity_plain", "weak",
            "max_perplexity_ratio", "warnings", "answered", "inventory", "alpha_from", "score", "tool"]  # fmt: skip
    for place, value in enumerate(junk):
        evil = persona(EVIL, fit=dict.fromkeys(keys, value), description=EVIL, base_model=EVIL)
        # Half a surrogate pair: JSON can say it, no text file can hold it.
        data = evil.to_bytes().replace(b"LONE_SG", rb"\\ud800")
        (tmp_path / f"p{place}.safetensors").write_bytes(data)
    wild = {
        "alphas": [{"alpha": a, "perplexity": p} for a in (-1e12, 0, 1e12) for p in (1e-9, 1e12)]
    }
    save(
        persona(fit=wild, alpha=-1e30, num_layers=9000, num_heads=9000), tmp_path / "w.safetensors"
    )
    (tmp_path / "<b>.safetensors").write_bytes(b"\x80\x04 a pickle")
    result = report(tmp_path, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout)["unreadable"].keys() == {"<b>.safetensors"}
    text = (tmp_path / "report.html").read_text()
    tags = {tag for tag, _ in Page(text).tags}
    assert "img" not in tags and "b" not in tags and text.count("<script>") == 1
    assert "alert(1)" in text and "{{ 7*7 }}" in text and "\u202e" not in text
    list(pictures(text))


def test_a_broken_evaluation_is_refused_or_shown_never_a_traceback(
    evaluated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, measured = evaluated
    found = sources.read_folder(folder / "personas")
    path, refused = tmp_path / "e.json", 0
    random.seed(0)
    for _ in range(40):
        data = json.loads(json.dumps(measured))
        here: Any = data
        while True:
            key = random.choice(list(here) if isinstance(here, dict) else range(len(here)))
            if not isinstance(here[key], (dict, list)) or not here[key] or random.random() < 0.3:
                break
            here = here[key]
        if random.random() < 0.4:
            del here[key]
        else:
            here[key] = random.choice([None, "x", {}, [], [None], 1e308, -1, True])
        path.write_text(json.dumps(data))
        try:
            evaluation = read_evaluation(path)
            Page(render("x", found, overview(found, evaluation), evaluation=evaluation))
        except InputError as error:
            refused += 1
            assert len(str(error)) < 5000
    assert 10 < refused < 38


def test_what_does_not_belong_together_ends_with_exit_2_and_no_page(
    evaluated: tuple[Path, dict[str, Any]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, measured = evaluated
    save(persona("zoe"), tmp_path / "zoe.safetensors")
    strange = tmp_path / "judgement.json"
    strange.write_text(json.dumps(measured | {"format": "palign.judgement"}))
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    save(persona(num_layers=LAYERS + 1), other / "ann.safetensors")
    for arguments, wanted in (
        ((tmp_path / "empty",), "holds no persona file"),
        ((tmp_path / "zoe.safetensors",), "is not a folder"),
        ((tmp_path, "--evaluation", strange), "'palign.judgement'"),
        ((tmp_path, "--evaluation", folder / "evaluation.json"), "named after it"),
        ((tmp_path, "--out", tmp_path / "no" / "x.html"), "in a folder that is there"),
        (
            (other, "--model", tiny_checkpoint, "--device", "cpu"),
            "give the model they were made on",
        ),
    ):
        result = report(*arguments)
        assert result.exit_code == 2 and wanted in result.stderr, result.output
        assert "Traceback" not in result.stderr and result.stdout == ""
    assert not list(tmp_path.rglob("*.html")) and not list(tmp_path.rglob(".*"))


def test_the_sample_answers_are_the_steered_models_own(tiny: Any, tmp_path: Path) -> None:
    from contextlib import nullcontext

    from palign_fit.evaluation.huggingface import HuggingFaceBackend
    from palign_fit.evaluation.tasks import Setting, Speech

    strong = persona(alpha=8.0)
    save(strong, tmp_path / "ann.safetensors")
    found = sources.read_folder(tmp_path).entries
    spoken = samples.speak(
        tiny, samples.chosen(found, tiny), lambda *_: nullcontext(lambda _: None)
    )
    asked = [
        Speech(Setting(persona_id="ann", persona=strong, scope="answers"), q.text)
        for q in samples.ASKED
    ]
    own = HuggingFaceBackend(tiny, 1.0).speak(asked, samples.MAX_TOKENS, lambda _: None)
    assert [one.steered for one in spoken["ann"].samples] == own
    assert own != [one.plain for one in spoken["ann"].samples]
    curve = spoken["ann"].curve
    assert curve is not None and [one.alpha for one in curve.points] == [4.0, 8.0, 12.0, 16.0]
    moved = [one.effect for one in curve.points]
    plain, changed = tiny_statements(tiny, None), tiny_statements(tiny, strong)
    assert moved[1] == pytest.approx(np.std(changed - plain), rel=1e-5)
    assert None not in moved and len(set(moved)) == 4


def tiny_statements(tiny: Any, steering: Persona | None) -> Any:
    """Log-likelihood of the built-in statements, nats per token, one by one."""
    from contextlib import nullcontext

    from palign_fit.inputs.inventory import built_in
    from palign_fit.model import prompts
    from palign_fit.model.likelihood import statement_loglik
    from palign_fit.model.steer import steered

    prefix = prompts.chat_prefix(tiny.tokenizer, prompts.OPENINGS[0])
    lines = [
        prompts.continuation(tiny.tokenizer, prompts.statement(item.text))
        for item in built_in().items
    ]
    with steered(tiny, steering) if steering else nullcontext():
        return statement_loglik(tiny, prefix, lines)


def test_a_large_folder_is_bounded_and_the_page_says_what_is_missing(tmp_path: Path) -> None:
    for place in range(sources.MAX_DETAILED + 5):
        name = f"s{place:04}"
        (tmp_path / f"{name}.safetensors").write_bytes(persona(name).to_bytes())
    result = report(tmp_path, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["personas"], summary["detailed"]) == (305, 300)
    assert "5 personas" in summary["left_out"][0] and "left out: pictures" in result.stderr
    text = (tmp_path / "report.html").read_text()
    assert summary["left_out"][0] in text and text.count('<details class="persona"') == 300
    assert "s0304" in text and summary["bytes"] < 8_000_000


def test_heads_beyond_what_a_map_can_show_are_counted(tmp_path: Path) -> None:
    layers, heads = np.divmod(np.arange(800, dtype=np.int32), 20)
    offsets = np.zeros((800, 4), np.float32)
    offsets[:, 0] = np.arange(800)
    many = persona(
        layers=layers, heads=heads, offsets=offsets, num_layers=40, num_heads=20, head_dim=4
    )
    save(many, tmp_path / "ann.safetensors")
    (entry,) = sources.read_folder(tmp_path).entries
    assert entry.steered == 800 and len(entry.heads) == sources.MAX_HEADS
    assert {one.norm for one in entry.heads} == {2.0 * n for n in range(200, 800)}
    assert load(entry.path) == many


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 6.0], ["0", "2", "4", "6"]),
        ([34.1, 47.2], ["30", "35", "40", "45", "50"]),
        ([-0.012, 0.03], ["−0.02", "−0.01", "0.00", "0.01", "0.02", "0.03"]),
        ([5.0], ["4.7", "4.8", "4.9", "5.0", "5.1", "5.2", "5.3"]),
        ([1e12], None),
        ([-1e12, 1e-9, 1e12], None),
    ],
)
def test_axes_have_round_ticks_around_all_values(
    values: list[float], labels: list[str] | None
) -> None:
    axis = Axis.over(values, 100, 0)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert labels is None or [tick.label for tick in axis.ticks] == labels
