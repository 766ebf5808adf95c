"""The deployment examples: they parse, refer to what exists, and use options that exist. Nothing is deployed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from vllm_palign.plugin.command_line import _OPTIONS

DEPLOY = ROOT / "examples" / "deploy"
COMPOSE = DEPLOY / "compose"
KUBERNETES = DEPLOY / "kubernetes"
YAML = sorted(path for path in (ROOT / "examples").rglob("*") if path.suffix in (".yaml", ".yml"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_yaml_without_anything_twice(path: Path) -> None:
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key) for key, _ in node.value]
            assert len(set(keys)) == len(keys), keys
            return super().construct_mapping(node, deep=deep)

    assert all(yaml.load_all(path.read_text(), Loader=Strict))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str):
        yield value
    elif not isinstance(value, (int, float, type(None))):
        for item in value:
            yield from strings(item)


def test_the_options_of_the_examples_exist() -> None:
    used = {
        text.partition("=")[0]
        for path in (COMPOSE / "compose.yaml", KUBERNETES / "palign.yaml")
        for document in yaml.safe_load_all(path.read_text())
        for text in strings(document)
        if text.startswith("--palign")
    }
    assert used == {"--palign-store", "--palign-tenants"}
    assert {option[len("--palign-") :] for option in used} <= set(_OPTIONS)


def test_what_compose_mounts_and_names_is_there() -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    made_by_the_operator = {"./tenants"}
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert source in made_by_the_operator or (COMPOSE / source).is_file(), source
            else:
                assert source in compose["volumes"]
        # What takes the host's network publishes nothing: it listens on 127.0.0.1 by itself.
        assert service.get("network_mode") == "host" or service["networks"]
        assert set(service.get("networks", [])) <= set(compose["networks"])
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "published to the world"
    rules = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["rule_files"]
    mounted = " ".join(strings(compose["services"]["prometheus"]["volumes"]))
    assert all(f"/etc/prometheus/{rule}" in mounted for rule in rules)


def test_kubernetes_objects_find_each_other() -> None:
    objects = {
        (item["kind"], item["metadata"]["name"]): item
        for path in sorted(KUBERNETES.glob("*.yaml"))
        for item in yaml.safe_load_all(path.read_text())
    }
    labels = {
        name: item["spec"]["template"]["metadata"]["labels"]
        for (kind, name), item in objects.items()
        if kind == "Deployment"
    }
    for (kind, name), item in objects.items():
        assert item["metadata"]["namespace"] == "palign"
        if kind == "Deployment":
            assert item["spec"]["selector"]["matchLabels"] == labels[name]
        if kind == "Service":
            assert item["spec"]["selector"] == labels[name]
            ports = objects["Deployment", name]["spec"]["template"]["spec"]["containers"][0][
                "ports"
            ]
            assert item["spec"]["ports"][0]["targetPort"] in [port["name"] for port in ports]
        if kind == "Ingress":
            paths = [path for rule in item["spec"]["rules"] for path in rule["http"]["paths"]]
            for path in paths:
                assert ("Service", path["backend"]["service"]["name"]) in objects
            assert not [path for path in paths if path["path"] in ("/", "/metrics")]
    arguments = list(strings(objects["Deployment", "router"]))
    selector = arguments[arguments.index("--selector") + 1]
    assert selector == f"app={labels['palign']['app']}"
