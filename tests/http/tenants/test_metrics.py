"""Metrics of a real server with two API server processes; the dashboard and the alerts that read them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.http.tenants.tenancy import Tenancy
from vllm_palign import metrics

DASHBOARD = ROOT / "examples" / "grafana" / "palign.json"
ALERTS = ROOT / "examples" / "prometheus" / "alerts.yml"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(tenancy: Tenancy) -> Samples:
    text = tenancy.call(None, "GET", "/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def test_requests_and_tokens_are_counted_by_tenant_over_all_processes(tenancy: Tenancy) -> None:
    before = scrape(tenancy)
    replies = [
        tenancy.complete("acme", persona="own", prompt=["a b", "c"], n=2, temperature=1)
        for _ in range(8)
    ]
    replies += [tenancy.complete("globex") for _ in range(4)]
    usage = [reply.json()["usage"] for reply in replies]
    with tenancy.openai("acme") as client:
        stream = client.chat.completions.create(
            model="base@own", messages=[{"role": "user", "content": "Hi"}], max_tokens=3, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        last = [chunk.usage for chunk in stream if chunk.usage][-1]
    tenancy.complete("acme", persona="nobody")
    for _ in range(4):  # whichever process answers, the sums are the same
        after = scrape(tenancy)

        def grown(name: str, now: Samples = after, **labels: str) -> float:
            return value(now, name, **labels) - value(before, name, **labels)

        assert grown("palign_requests_total", tenant="acme", kind="steered") == 9
        assert grown("palign_requests_total", tenant="acme", kind="plain") == 0
        assert grown("palign_requests_total", tenant="globex", kind="plain") == 4
        assert grown(
            "palign_tokens_total", tenant="acme", kind="prompt"
        ) == last.prompt_tokens + sum(use["prompt_tokens"] for use in usage[:8])
        assert grown(
            "palign_tokens_total", tenant="acme", kind="generated"
        ) == last.completion_tokens + sum(use["completion_tokens"] for use in usage[:8])
        assert grown("palign_refusals_total", code="persona_not_found") == 1
        ok = {"outcome": "ok"}
        fetched = grown("palign_persona_fetches_total", source="cache", **ok)
        assert fetched + grown("palign_persona_fetches_total", source="store", **ok) == 9
        assert value(after, "palign_slots", state="total") == 4
        assert value(after, "palign_registry_personas") >= 5
        assert value(after, "palign_host_cache_bytes") > 0
        assert value(after, "palign_persona_fetch_seconds_count", source="store") >= 1
    for _ in range(50):  # slots are asked for each 5 s, however often somebody scrapes
        if value(scrape(tenancy), "palign_slots", state="resident") >= 1:
            return
        time.sleep(0.2)
    raise AssertionError("no slot was ever seen in use")


def test_the_prompt_of_a_beam_search_is_counted_once(tenancy: Tenancy) -> None:
    """vLLM sends the engine a request for each beam and token, each with all that came before as its prompt."""
    before = scrape(tenancy)
    prompts, paths = ["Hello there, my friend", "Hi"], ("/v1/completions", "/v1/chat/completions")
    search = {"n": 3, "use_beam_search": True, "max_tokens": 4}
    completed = tenancy.complete("acme", prompt=prompts, **search)
    chat = {"model": "base", "messages": [{"role": "user", "content": prompts[0]}], **search}
    chatted = tenancy.call("acme", "POST", paths[1], json=chat)
    wanted = sum(reply.json()["usage"]["prompt_tokens"] for reply in (completed, chatted))
    tokens = {"name": "palign_tokens_total", "tenant": "acme", "kind": "prompt"}
    assert value(scrape(tenancy), **tokens) - value(before, **tokens) == wanted > 0


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], re.sub(r"\$__rate_interval", "5m", target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            (metric,) = re.findall(r"label_values\((\w+), \w+\)", variable["query"]["query"])
            yield variable["name"], metric
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector of a parsed PromQL expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        child = getattr(node, name, None)
        if isinstance(child, promql_parser.Expr):
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


def known() -> dict[str, set[str]]:
    """Our metrics' sample names -> their labels."""
    names: dict[str, set[str]] = {}
    for collector in vars(metrics).values():
        if isinstance(collector, (Counter, Gauge, Histogram)):
            for name in REGISTRY._collector_to_names[collector]:
                names[name] = {*collector._labelnames, "instance", "le"}
    return names


@pytest.mark.parametrize("title", sorted({title for title, _ in expressions()}))
def test_an_expression_parses_and_names_existing_metrics_and_labels(title: str) -> None:
    ours = known()
    assert len(ours) > 20
    for where, expression in expressions():
        if where != title:
            continue
        found = list(selectors(promql_parser.parse(expression)))
        assert found, expression
        for selector in found:
            if selector.name == "vllm:generation_tokens_total":
                continue
            assert selector.name in ours, expression
            used = {matcher.name for matcher in selector.matchers.matchers}
            assert used <= ours[selector.name], expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            wanted = set(labels.replace(" ", "").split(","))
            assert any(wanted <= ours.get(selector.name, wanted) for selector in found), expression


def test_alerts_have_what_an_alertmanager_shows() -> None:
    rules = [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 4
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_panels_are_laid_out_without_overlap() -> None:
    panels = json.loads(Path(DASHBOARD).read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
