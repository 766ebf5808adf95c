"""A tenant's request with a slash at its end: let in as the path without it, and redirected like stock's."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from tests.server.calls import application, ask, open_front_end
from vllm_palign.errors import KeyInvalid
from vllm_palign.tenants.tenant import Tenant


class Keys:
    def authenticate(self, headers: Any) -> Tenant:
        if dict(headers).get(b"authorization") != b"Bearer k":
            raise KeyInvalid("no API key")
        return Tenant(name="acme", may_manage=False)


@pytest.fixture
def app() -> FastAPI:
    front_end = open_front_end(alice=0)
    front_end.tenants = Keys()  # type: ignore[assignment]
    return application(front_end, "base")


def test_a_slash_at_the_end_redirects_tenants_too(app: FastAPI) -> None:
    headers = {"authorization": "Bearer k"}
    body = {"persona": "alice", "prompt": "x"}
    status, reply, _ = ask(app, "/v1/completions/", body, headers=headers)
    assert status == 307
    assert reply["location"].endswith("/v1/completions")
    assert ask(app, "/v1/completions/", body)[0] == 401
    assert ask(app, "/v1/audio/", body, headers=headers)[2]["error"]["code"] == "not_found"
    assert ask(app, "/v1/nothing/", body, headers=headers)[2]["error"]["code"] == "not_found"
    assert not app.state.received
