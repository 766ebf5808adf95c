"""The table of attempts for ``test_security``: what is sent, and how it must be refused.

``acme`` attacks. ``secret`` is globex's, ``kept`` the operator's and shared with nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_palign.persona import MAX_FILE_BYTES
from vllm_palign.server import gate

PROMPT = {"model": "base", "prompt": "Hello", "max_tokens": 2}
SECRET = "globex's persona"
"""Stands for its digest in the tables; known when the server runs."""


@dataclass(frozen=True)
class Attempt:
    status: int
    code: str | None
    body: dict[str, Any] | bytes | str | None = None
    method: str = "POST"
    path: str = "/v1/completions"
    who: str | None = "acme"
    headers: tuple[tuple[str, str], ...] = ()

    def request(self, server: str, keys: Mapping[str, str], digest: str) -> dict[str, Any]:
        """Arguments for ``request`` of httpx. ``digest`` is that of globex's persona."""
        own, others = keys["acme"], keys["globex"]
        stand_for = {"KEY": own, "HALF": own[:-20], "MIXED": others[:20] + own[20:], SECRET: digest}

        def fill(text: str) -> str:
            for sign, value in stand_for.items():
                text = text.replace(sign, value)
            return text

        body = fill(json.dumps(self.body)).encode() if isinstance(self.body, dict) else self.body
        headers = [(header, fill(value)) for header, value in self.headers]
        if "content-type" not in dict(headers):
            headers.append(("content-type", "application/json"))
        if self.who is not None:
            headers.append(("authorization", f"Bearer {keys[self.who]}"))
        return {
            "method": self.method,
            "url": server + fill(self.path),
            "content": body,
            "headers": headers,
        }


def asks(status: int, code: str | None, **fields: Any) -> Attempt:
    return Attempt(status, code, {**PROMPT, **fields})


def raw(status: int, code: str | None, text: str | bytes) -> Attempt:
    """A body as text, ``...`` standing for the fields every request has."""
    if isinstance(text, str):
        text = text.replace("...", '"model": "base", "prompt": "Hello", "max_tokens": 2').encode()
    return Attempt(status, code, text)


def managed(status: int, code: str | None, method: str, path: str, **options: Any) -> Attempt:
    return Attempt(status, code, options.pop("body", None), method, path, **options)


FILE = (("content-type", "application/octet-stream"),)
AS_FILE = (("accept", "application/octet-stream"),)
MISSING, INVALID = (404, "persona_not_found"), (400, "persona_invalid")

NAMES = {
    f"{kind} as persona": asks(*answer, persona=name)
    for kind, name, answer in (
        ("another's name", "secret", MISSING),
        ("the operator's own", "kept", MISSING),
        ("other capitals", "Secret", MISSING),
        ("a LIKE pattern", "s_cret", MISSING),
        ("tenant dot name", "globex.secret", MISSING),
        ("tenant slash name", "globex/secret", INVALID),
        ("tenant colon name", "globex:secret", INVALID),
        ("tenant at name", "globex@secret", INVALID),
        ("name at tenant", "secret@globex", INVALID),
        ("a relative path", "../globex/secret", INVALID),
        ("an encoded path", "..%2fglobex%2fsecret", INVALID),
        ("an encoded letter", "%73ecret", INVALID),
        ("an absolute path", "/etc/passwd", INVALID),
        ("a file URL", "file:///etc/passwd", INVALID),
        ("a hub URL", "hf://owner/repo", INVALID),
        ("a wildcard", "*", INVALID),
        ("a percent wildcard", "secre%", INVALID),
        ("SQL", "x' OR tenant='globex' --", INVALID),
        ("a NUL", "secret\0", INVALID),
        ("a line break", "secret\n", INVALID),
        ("a space before", " secret", INVALID),
        ("a space behind", "secret ", INVALID),
        ("a Cyrillic letter", "ѕecret", INVALID),
        ("full width", "ｓｅｃｒｅｔ", INVALID),
        ("a zero-width space", "sec\u200bret", INVALID),
        ("a combining mark", "secre\u0301t", INVALID),
        ("right to left", "\u202eterces", INVALID),
        ("a lone surrogate", "secret\ud800", INVALID),
        ("an empty name", "", INVALID),
        ("129 characters", "s" * 129, INVALID),
        ("its digest", SECRET, MISSING),
        ("a list", ["secret"], INVALID),
        ("an operator of a query", {"id": {"$ne": ""}}, INVALID),
        ("its id in an object", {"id": "secret"}, MISSING),
        ("at strength 0", {"id": "secret", "strength": 0}, MISSING),
        ("in a blend", {"mix": {"own": 1, "secret": 0.5}}, MISSING),
        ("in a blend at weight 0", {"mix": {"own": 1, "secret": 0}}, MISSING),
        ("by digest field", {"digest": SECRET}, INVALID),
        ("with its tenant", {"id": "secret", "tenant": "globex"}, INVALID),
        ("with an owner", {"id": "own", "owner": "globex"}, INVALID),
    )
}

OTHER_PLACES = {
    "metadata": asks(*MISSING, metadata={"persona": "secret"}),
    "metadata beside an own one": asks(400, "persona_conflict", persona="own", metadata={"persona": "secret"}),
    "model suffix": asks(*MISSING, model="base@secret"),
    "model suffix with a path": asks(*INVALID, model="base@../secret"),
    "model suffix, empty": asks(*INVALID, model="base@"),
    "model suffix beside an own one": asks(400, "persona_conflict", persona="own", model="base@secret"),
    "two model suffixes": asks(404, None, model="base@own@secret"),
    "model in capitals with a suffix": asks(404, None, model="BASE@secret"),
    "model, encoded suffix": asks(404, None, model="base%40secret"),
    "chat": Attempt(*MISSING, {"model": "base@secret", "messages": []}, path="/v1/chat/completions"),
    "responses": Attempt(*MISSING, {"model": "base", "input": "x", "persona": "secret"}, path="/v1/responses"),
    "a path that is not steered": Attempt(*INVALID, {**PROMPT, "persona": "own"}, path="/v1/messages"),
    "reserved xarg": asks(*INVALID, vllm_xargs={"palign": "secret"}),
    "reserved xarg, forged token": asks(
        *INVALID, vllm_xargs={"palign": json.dumps({"token": "0" * 32, "parts": [[SECRET, 1.0]]})}
    ),
    "reserved xarg beside an own persona": asks(*INVALID, persona="own", vllm_xargs={"palign": "x"}),
    "reserved extra argument": asks(*INVALID, extra_args={"palign": {"key": SECRET}}),
    "reserved sampling parameter": asks(*INVALID, sampling_params={"extra_args": {"palign": "secret"}}),
    "misspelt field": asks(*INVALID, persona_id="secret"),
    "misspelt strength": asks(*INVALID, persona="own", persona_strength=9),
    "beyond the tenant's strength": asks(*INVALID, persona={"id": "own", "strength": 2.5}),
    "beyond it by a blend": asks(*INVALID, persona={"mix": {"own": 1.5, "lent": -1.5}}),
    "beyond it by infinity": raw(*INVALID, '{..., "persona": {"id": "own", "strength": 1e999}}'),
    "beyond it by NaN": raw(*INVALID, '{..., "persona": {"id": "own", "strength": NaN}}'),
    "a salt of palign's": asks(*INVALID, cache_salt="palign:" + "0" * 64),
    "a salt of palign's beside a persona": asks(*INVALID, persona="own", cache_salt="palign:x"),
    "a salt of palign's, escaped": raw(*INVALID, '{..., "cache_salt": "\\u0070align:x"}'),
    "a salt with a NUL": asks(400, None, cache_salt="x\0globex"),
    "a salt with a path": asks(400, None, cache_salt="../globex"),
    "a salt that is a list": asks(400, None, cache_salt=["globex"]),
    "beam search": asks(*INVALID, persona="own", use_beam_search=True, n=2),
}  # fmt: skip

BODIES = {
    "persona twice": raw(*INVALID, '{..., "persona": "own", "persona": "secret"}'),
    "persona twice, one escaped": raw(*INVALID, '{..., "persona": "own", "p\\u0065rsona": "secret"}'),
    "id twice": raw(*INVALID, '{..., "persona": {"id": "own", "id": "secret"}}'),
    "mix twice": raw(*INVALID, '{..., "persona": {"mix": {"own": 1}, "mix": {"secret": 1}}}'),
    "a blend's part twice": raw(*INVALID, '{..., "persona": {"mix": {"own": 0.1, "own": 9}}}'),
    "metadata twice": raw(*INVALID, '{..., "metadata": {}, "metadata": {"persona": "secret"}}'),
    "model twice": raw(*INVALID, '{..., "model": "base@own", "model": "base@secret"}'),
    "an escaped field": raw(*MISSING, '{..., "\\u0070ersona": "secret"}'),
    "UTF-16": raw(*MISSING, json.dumps({**PROMPT, "persona": "secret"}).encode("utf-16")),
    "nested deeply": raw(*INVALID, '{..., "persona": ' + '{"id": ' * 50_000 + '1' + '}' * 50_001),
    "a byte order mark": raw(*MISSING, b"\xef\xbb\xbf" + json.dumps({**PROMPT, "persona": "secret"}).encode()),
    "not JSON": raw(400, None, "persona=secret"),
    "a list of requests": raw(400, None, '[{..., "persona": "secret"}]'),
    "more than a tenant may send": Attempt(413, "body_too_large", b" " * (gate.MAX_BODY + 1)),
}  # fmt: skip

PERSONAS = "/v1/personas"
MANAGEMENT = {
    "read another's": managed(*MISSING, "GET", f"{PERSONAS}/secret"),
    "read another's, letter encoded": managed(*MISSING, "GET", f"{PERSONAS}/%73ecret"),
    "read by digest": managed(*MISSING, "GET", f"{PERSONAS}/{SECRET}"),
    "read the operator's own": managed(*MISSING, "GET", f"{PERSONAS}/kept"),
    "read with a tenant parameter": managed(*MISSING, "GET", f"{PERSONAS}/secret?tenant=globex"),
    "read with a tenant header": managed(
        *MISSING, "GET", f"{PERSONAS}/secret", headers=(("x-tenant", "globex"), ("x-palign-tenant", "globex"))
    ),
    "download another's": managed(*MISSING, "GET", f"{PERSONAS}/secret", headers=AS_FILE),
    "download a shared one": managed(
        403, "persona_forbidden", "GET", f"{PERSONAS}/lent", headers=AS_FILE
    ),
    "download with a key that may only ask": managed(
        403, "persona_forbidden", "GET", f"{PERSONAS}/own", headers=AS_FILE, who="acme-use"
    ),
    "read through a path": managed(404, "not_found", "GET", f"{PERSONAS}/globex/secret"),
    "read through an encoded path": managed(404, "not_found", "GET", f"{PERSONAS}/globex%2fsecret"),
    "read through dots": managed(404, "not_found", "GET", f"{PERSONAS}/%2e%2e/personas/secret"),
    "read with a slash behind": managed(404, "not_found", "GET", f"{PERSONAS}/secret/"),
    "read with two slashes": managed(404, "not_found", "GET", "/v1//personas/secret"),
    "read in capitals": managed(404, "not_found", "GET", "/V1/Personas/secret"),
    "read with a NUL": managed(*INVALID, "GET", f"{PERSONAS}/secret%00"),
    "read a look-alike": managed(*INVALID, "GET", f"{PERSONAS}/%D1%95ecret"),
    "delete another's": managed(*MISSING, "DELETE", f"{PERSONAS}/secret"),
    "delete a shared one": managed(403, "persona_forbidden", "DELETE", f"{PERSONAS}/lent"),
    "delete the operator's own": managed(*MISSING, "DELETE", f"{PERSONAS}/kept"),
    "delete everything": managed(405, "method_not_allowed", "DELETE", PERSONAS),
    "delete by override header": managed(
        405, "method_not_allowed", "POST", f"{PERSONAS}/own", headers=(("x-http-method-override", "DELETE"),)
    ),
    "patch": managed(405, "method_not_allowed", "PATCH", f"{PERSONAS}/own", body=b"{}"),
    "manage with a key that may only ask": managed(
        403, "persona_forbidden", "DELETE", f"{PERSONAS}/own", who="acme-use"
    ),
    "put with a key that may only ask": managed(
        403, "persona_forbidden", "PUT", f"{PERSONAS}/x", body=b"x", who="acme-use"
    ),
    "enrol with a key that may only ask": managed(
        403, "persona_forbidden", "PUT", f"{PERSONAS}/x", body={"traits": {"E": 1}}, who="acme-use"
    ),
    "enrol over a shared one's owner": managed(
        *INVALID, "PUT", f"{PERSONAS}/x", body={"traits": {"E": 1}, "tenant": "globex"}
    ),
    "enrol with a path in the name": managed(
        404, "not_found", "PUT", f"{PERSONAS}/..%2fglobex%2fsecret", body={"traits": {"E": 1}}
    ),
    "enrol more than a questionnaire holds": managed(
        413, "persona_invalid", "PUT", f"{PERSONAS}/x", body=b" " * (1 << 20)
    ),
    "write the questionnaire": managed(405, "method_not_allowed", "PUT", "/v1/questionnaire", body={}),
    "put a path": managed(404, "not_found", "PUT", f"{PERSONAS}/..%2fglobex%2fsecret", body=b"x"),
    "put a file that is none": managed(*INVALID, "PUT", f"{PERSONAS}/x", body=b"x", headers=FILE),
    "put a pickle": managed(
        *INVALID, "PUT", f"{PERSONAS}/x", body=b"\x80\x04cos\nsystem\n.", headers=FILE
    ),
    "put too much": managed(
        413, "persona_invalid", "PUT", f"{PERSONAS}/x", body=b"x" * (MAX_FILE_BYTES + 1), headers=FILE
    ),
    "put over an own one": managed(*INVALID, "PUT", f"{PERSONAS}/own?replace=perhaps", body=b"x"),
    "a page too large": managed(*INVALID, "GET", f"{PERSONAS}?limit=1001"),
    "a page of nothing": managed(*INVALID, "GET", f"{PERSONAS}?limit=-1"),
    "a page behind a path": managed(*INVALID, "GET", f"{PERSONAS}?after=../globex"),
}  # fmt: skip

KEYLESS = (401, "invalid_api_key")
KEYS = {
    **{
        f"no key: {method} {path}": Attempt(*KEYLESS, None, method, path, who=None)
        for method, path in (
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/responses"),
            ("POST", "/tokenize"),
            ("GET", "/v1/models"),
            ("GET", PERSONAS),
            ("PUT", f"{PERSONAS}/x"),
            ("GET", "/v1/questionnaire"),
            ("GET", "/anything"),
        )
    },
    **{
        kind: Attempt(*KEYLESS, PROMPT, path=path, who=None, headers=headers)
        for kind, path, headers in (
            ("unknown key", "/v1/completions", (("authorization", "Bearer sk-unknown"),)),
            ("basic", "/v1/completions", (("authorization", "Basic YWNtZTphY21l"),)),
            ("a tenant's name as key", "/v1/completions", (("authorization", "Bearer globex"),)),
            ("another header", "/v1/completions", (("x-api-key", "KEY"),)),
            ("a cookie", "/v1/completions", (("cookie", "authorization=Bearer KEY"),)),
            ("in the query", "/v1/completions?api_key=HALF", ()),
            ("a proxy's word", "/v1/completions", (("x-forwarded-user", "globex"),)),
            ("two keys", "/v1/completions", (("authorization", "Bearer KEY"),) * 2),
            ("a key and more", "/v1/completions", (("authorization", "Bearer KEY, Bearer KEY"),)),
            ("half a key", "/v1/completions", (("authorization", "Bearer HALF"),)),
            ("another's id", "/v1/completions", (("authorization", "Bearer MIXED"),)),
        )
    },
}

FOREIGN = {
    f"{method} {path}": Attempt(404, "not_found", {}, method, path)
    for method, path in (
        ("POST", "/invocations"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/inference/v1/generate"),
        ("POST", "/v1/chat/completions/batch"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", "/v1/systemone"),
        ("POST", "/generative_scoring"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/collective_rpc"),
        ("POST", "/reset_prefix_cache"),
        ("POST", "/start_profile"),
        ("POST", "/scale_elastic_ep"),
        ("GET", "/server_info"),
        ("POST", "/health"),
    )
}

ATTEMPTS = {**NAMES, **OTHER_PLACES, **BODIES, **MANAGEMENT, **KEYS, **FOREIGN}
