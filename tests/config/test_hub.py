"""``hf://`` personas, against a stand-in for the hub: there is no network in the tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import TINY, run_python
from tests.personas import random_persona

OLD, NEW = "1" * 40, "2" * 40
FILES: dict[str, dict[str, bytes]] = {
    commit: {
        "alice.safetensors": random_persona(seed, **TINY).to_bytes(),
        "bob.safetensors": random_persona(seed + 1, **TINY).to_bytes(),
        "more/carol.safetensors": random_persona(seed + 2, **TINY).to_bytes(),
        "README.md": b"personas",
    }
    for seed, commit in ((0, OLD), (10, NEW))
}
LARGE = (16 << 20) + 1


class Hub(BaseHTTPRequestHandler):
    """The two calls that matter: what is in a repository at a revision, and a file of it."""

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "palign", "team"]:
            revision = parts[5] if len(parts) > 5 else "main"
            commit = {"main": NEW, "v1": OLD}.get(revision, revision)
            if commit not in FILES:
                return self._answer(404, b"", {"x-error-code": "RevisionNotFound"})
            siblings = [
                {"rfilename": name, "size": len(data)} for name, data in FILES[commit].items()
            ]
            siblings.append({"rfilename": "._alice.safetensors", "size": 1})
            siblings.append({"rfilename": "model/weights.safetensors", "size": LARGE})
            facts = {"id": "palign/team", "sha": commit, "siblings": siblings}
            return self._answer(200, json.dumps(facts).encode(), {})
        if parts[:3] == ["palign", "team", "resolve"]:
            data = FILES[parts[3]]["/".join(parts[4:])]
            return self._answer(
                200, data, {"etag": f'"{sha256(data).hexdigest()}"', "x-repo-commit": parts[3]}
            )
        return self._answer(404, b"", {"x-error-code": "RepoNotFound"})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.server_close()


CODE = """
import json, sys
from vllm_palign import PalignStartupError, load
from vllm_palign.config import hub
from vllm_palign.config.sources import parse_directions, parse_personas
def attempt(work):
    try:
        return work()
    except PalignStartupError as error:
        return "refused: " + error.message
out = {name: attempt(lambda: parse_personas([value])) for name, value in json.load(sys.stdin).items()}
out["directions"] = parse_directions("hf://palign/team@v1/more/carol.safetensors")
out["a path"] = parse_directions("directions.safetensors")
out["no directions"] = attempt(lambda: parse_directions("hf://palign/nothing"))
try:
    hub.download("hf://palign/team/alice.safetensors", most_bytes=10)
    out["bounded"] = "downloaded"
except PalignStartupError as error:
    out["bounded"] = error.message
out["digest"] = load(hub.download("hf://palign/team/alice.safetensors")).digest
out["large"] = attempt(lambda: hub.download("hf://palign/team/model/weights.safetensors"))
print("RESULT " + json.dumps(out))
"""


def test_hub_personas_are_pinned_bounded_and_cached(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    team = "hf://palign/team"
    values = {
        "all": team, "one": f"ally={team}@v1/alice.safetensors", "deeper": f"{team}@v1/more/carol.safetensors",
        "ambiguous": f"ally={team}", "missing": f"x={team}/nobody.safetensors", "no such": "hf://palign/nothing",
        "revision": f"x={team}@v9/alice.safetensors", "form": "hf://palign",
    }  # fmt: skip
    environment = {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": None}
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    out = run_python(CODE, stdin=json.dumps(values), HF_ENDPOINT=endpoint, **environment)
    assert out["all"] == {name: f"{team}@{NEW}/{name}.safetensors" for name in ("alice", "bob")}
    assert out["one"] == {"ally": f"{team}@{OLD}/alice.safetensors"}
    assert out["deeper"] == {"carol": f"{team}@{OLD}/more/carol.safetensors"}
    assert "holds 2 .safetensors files" in out["ambiguous"]
    assert "no such file" in out["missing"]
    assert "the hub cannot be asked" in out["no such"]
    assert "the hub cannot be asked" in out["revision"]
    assert "wanted hf://owner/repo" in out["form"]
    assert out["digest"] == sha256(FILES[NEW]["alice.safetensors"]).hexdigest()
    assert f"holds {LARGE} bytes" in out["large"]
    assert out["directions"] == f"{team}@{OLD}/more/carol.safetensors"
    assert out["a path"] == "directions.safetensors"
    assert out["no directions"].startswith("refused: --palign-directions: hf://palign/nothing")
    assert "wanted at most 10" in out["bounded"]
    hub.shutdown()
    pinned = f"hf://palign/team@{NEW}/alice.safetensors"
    code = f"import json; from vllm_palign import load; from vllm_palign.config import hub; print('RESULT ' + json.dumps(load(hub.download({pinned!r})).digest))"
    assert run_python(code, HF_ENDPOINT=endpoint, **environment) == out["digest"]
