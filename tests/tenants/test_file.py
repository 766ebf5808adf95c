"""The tenants file, its keys, and following it while it changes."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.conftest import TINY
from tests.personas import random_persona
from vllm_palign.admission.front_end import _warn_of_leftovers
from vllm_palign.cli.main import app
from vllm_palign.errors import KeyInvalid, PalignStartupError, PersonaForbidden
from vllm_palign.plugin.refusals import refuse_beside_tenants
from vllm_palign.registry import Registry
from vllm_palign.tenants import caller
from vllm_palign.tenants.authenticator import Authenticator
from vllm_palign.tenants.file import (
    MAX_LABELS,
    KeyTable,
    Labels,
    TenantsError,
    TenantsFile,
    new_key,
)
from vllm_palign.tenants.tenant import OPERATOR, Tenant

KEY = "{id: 0123456789ab, salt: " + "0" * 32 + ", hash: " + "0" * 64 + ", roles: [use]}"


def palign(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout.strip(), result.stderr


def bearer(key: str, scheme: str = "Bearer") -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", f"{scheme} {key}".encode())]


def test_purging_a_tenant_takes_its_personas_and_asks_first(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'r.sqlite'}"
    registry = Registry(store)
    registry.migrate()
    content = random_persona(1, **TINY)
    for owner in ("acme", "globex"):
        registry.put(Tenant(owner), "alice", content, content.to_bytes())
    assert palign("tenants", "purge", "acme", "--store", store)[0] == 1, "nobody said yes"
    assert registry.counts() == {"acme": 1, "globex": 1}
    code, out, _ = palign("tenants", "purge", "acme", "--store", store, "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"tenant": "acme", "deleted": 1})
    assert registry.counts() == {"globex": 1}
    (tmp_path / "empty.sqlite").touch()
    for tenant, place, why in (
        ("operator", store, "wanted a tenant"),
        ("acme", f"{store}.typo", "there is no file"),
        ("acme", f"sqlite:///{tmp_path}", "there is no file"),
        ("acme", f"sqlite:///{tmp_path / 'empty.sqlite'}", "is no registry of this release"),
        ("acme", "mysql://x", "wanted sqlite"),
    ):
        code, _, err = palign("tenants", "purge", tenant, "--store", place, "--yes")
        assert code == 2 and err.startswith("palign: ") and why in err
    assert palign("tenants", "purge", "globex", "--store", f"{store}?timeout=3", "--yes")[0] == 0
    assert registry.counts() == {}
    assert [one.name for one in tmp_path.glob("*typo*")] == []


def test_personas_of_who_is_no_tenant_any_more_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    caplog.set_level("WARNING", "vllm.palign")
    file = tmp_path / "tenants.yaml"
    palign("tenants", "new-key", "acme", "--file", file)
    _warn_of_leftovers({"": 3, "acme": 2}, str(file))
    assert not caplog.records
    _warn_of_leftovers({"": 3, "acme": 2, "gone": 7}, str(file))
    assert "gone (7); palign tenants purge NAME deletes them" in caplog.text


def test_the_command_makes_a_key_that_opens_only_its_tenant(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    code, key, _ = palign("tenants", "new-key", "acme", "--file", file)
    assert code == 0
    _, other, _ = palign("tenants", "new-key", "globex", "--file", file, "--role", "manage")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key.split("_", 2)[2] not in file.read_text()

    authenticator = Authenticator(file)
    acme, globex = (
        authenticator.authenticate(bearer(key)),
        authenticator.authenticate(bearer(other)),
    )
    assert (acme.name, acme.may_use, acme.may_manage) == ("acme", True, False)
    assert (globex.name, globex.may_use, globex.may_manage) == ("globex", True, True)
    with pytest.raises(PersonaForbidden):
        acme.require("manage")
    # The id of one key with the secret of the other.
    mixed = "_".join((*key.split("_", 2)[:2], other.split("_", 2)[2]))
    with pytest.raises(KeyInvalid):
        authenticator.authenticate(bearer(mixed))


def test_the_command_keeps_comments_and_revokes(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text("# ours\ntenants:\n  acme:  # the first\n    max_strength: 2.0\n")
    palign("tenants", "new-key", "acme", "--file", file)
    made = json.loads(palign("tenants", "new-key", "acme", "--file", file, "--json")[1])
    assert "# ours" in file.read_text()
    assert "# the first" in file.read_text()
    code, listed, _ = palign("tenants", "check", "--file", file, "--json")
    assert code == 0
    assert "hash" not in listed
    assert len(json.loads(listed)["tenants"]["acme"]["keys"]) == 2
    assert palign("tenants", "revoke", made["id"], "--file", file)[0] == 0
    assert len(TenantsFile.read(file).tenants["acme"].keys) == 1
    assert TenantsFile.read(file).tenants["acme"].max_strength == 2.0


def test_commands_at_once_undo_nothing_of_each_other(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    command = [Path(sys.executable).with_name("palign"), "tenants", "new-key", "--file", file]
    names = [f"t{number}" for number in range(6)]
    running = [subprocess.Popen([*command, name], stdout=subprocess.PIPE) for name in names]
    keys = [process.communicate(timeout=60)[0].decode().strip() for process in running]
    authenticator = Authenticator(file)
    assert [authenticator.authenticate(bearer(key)).name for key in keys] == names


@pytest.mark.parametrize("digits", ["012345670123", "123456789012", "1234567e8901", "000000000000"])
def test_an_id_that_looks_like_a_number_stays_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: str
) -> None:
    """Two YAML libraries write and read the file; a number in it would be another id."""
    monkeypatch.setattr("secrets.token_hex", lambda size: (digits * 3)[: 2 * size])
    file = tmp_path / "tenants.yaml"
    code, key, _ = palign("tenants", "new-key", "acme", "--file", file)
    assert code == 0
    assert Authenticator(file).authenticate(bearer(key)).key_id == digits


def test_a_mistake_on_the_command_line_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants: {acme: {}}\n")
    for arguments in (("new-key", "Acme!"), ("revoke", "ffffffffffff")):
        code, out, error = palign("tenants", *arguments, "--file", file)
        assert (code, out) == (2, "")
        assert error.startswith("palign: ")
    assert file.read_text() == "tenants: {acme: {}}\n"
    assert list(tmp_path.iterdir()) == [file]


BROKEN = {
    "not YAML": "tenants: [",
    "a tag": "tenants: !!python/object/apply:os.system ['true']",
    "an alias": "shared: &a {alice: {}}\ntenants: {acme: *a}",
    "a tenant twice": "tenants: {acme: {}, acme: {}}",
    "a field twice": "tenants: {acme: {max_strength: 1.0, max_strength: 9.0}}",
    "an unknown field": "tenants: {acme: {max_strenght: 1.0}}",
    "a list": "[]",
    "empty": "",
    "two documents": "tenants: {}\n---\ntenants: {}",
    "deep": "[" * 1000,
    "a capital": "tenants: {Acme: {}}",
    "a look-alike": "tenants: {аcme: {}}",
    "a path": "tenants: {../acme: {}}",
    "the label of the rest": "tenants: {other: {}}",
    "a number as name": "tenants: {7: {}}",
    "not shared": "tenants: {acme: {shared: [alice]}}",
    "no persona name": "shared: {../alice: {}}",
    "strength zero": "tenants: {acme: {max_strength: 0.0}}",
    "strength nan": "tenants: {acme: {max_strength: .nan}}",
    "strength text": "tenants: {acme: {max_strength: '1'}}",
    "quota below zero": "tenants: {acme: {max_personas: -1}}",
    "quota true": "tenants: {acme: {max_personas: true}}",
    "a key twice": f"tenants: {{acme: {{keys: [{KEY}]}}, globex: {{keys: [{KEY}]}}}}",
    "no roles": "tenants: {acme: {keys: [" + KEY.replace("[use]", "[]") + "]}}",
    "unknown role": "tenants: {acme: {keys: [" + KEY.replace("[use]", "[root]") + "]}}",
    "a plain key": "tenants: {acme: {keys: [sk-secret]}}",
    "not UTF-8": "tenants: \udcff",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_could_be_misread_is_refused(fault: str) -> None:
    with pytest.raises(TenantsError) as caught:
        TenantsFile.parse(BROKEN[fault].encode(errors="surrogateescape"), "tenants.yaml")
    assert caught.value.message.startswith("tenants.yaml: ")
    assert "0" * 64 not in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_file_or_an_error(data: bytes) -> None:
    try:
        TenantsFile.parse(data, "x")
    except TenantsError:
        return


def test_rights_and_labels_come_from_the_file() -> None:
    secret, record = new_key(["use"], datetime.now(UTC))
    key = record.model_dump_json(exclude={"created"})
    many = "".join(f"  t{index}: {{}}\n" for index in range(MAX_LABELS))
    text = (
        "shared: {alice: {share_kv: true}, bob: {}}\ntenants:\n" + many + "  acme:\n"
        f"    keys: [{key}]\n    shared: [alice, bob]\n    max_strength: 1.5\n    max_personas: 3\n"
    )
    tenant = KeyTable(TenantsFile.parse(text.encode(), "x"), Labels()).find(secret)
    assert tenant == Tenant(
        name="acme", shared=frozenset(("alice", "bob")), may_use=True, may_manage=False,
        max_strength=1.5, quota=3, shared_kv=frozenset(("alice",)), isolated=True,
        isolated_plain=True, label="other", key_id=record.id,
    )  # fmt: skip
    assert tenant.strength_bound(3.0) == 1.5
    assert tenant.strength_bound(1.0) == 1.0


def test_files_that_replace_one_another_do_not_pile_labels_up() -> None:
    """A label stays in the metrics as long as the process runs."""
    labels = Labels()
    for file in range(5):
        names = [f"t{file}-{index}" for index in range(MAX_LABELS // 2)]
        text = "tenants:\n" + "".join(f"  {name}: {{}}\n" for name in names)
        KeyTable(TenantsFile.parse(text.encode(), "x"), labels)
        given = {labels.of(name) for name in names}
        assert given == (set(names) if file < 2 else {"other"})
    assert labels.of("t0-0") == "t0-0", "who has one keeps it"


def test_kv_is_shared_only_where_every_part_is_the_operators_and_allowed() -> None:
    tenant = Tenant(
        "acme", shared=frozenset(("alice", "bob")), shared_kv=frozenset(("alice",)),
        isolated=True, isolated_plain=True,
    )  # fmt: skip
    assert tenant.kv_scope({"alice": OPERATOR}) == ""
    assert tenant.kv_scope({"alice": "acme"}) == "acme"
    assert tenant.kv_scope({"bob": OPERATOR}) == "acme"
    assert tenant.kv_scope({"alice": OPERATOR, "bob": OPERATOR}) == "acme"
    assert tenant.plain_kv_scope == "acme"
    assert Tenant().kv_scope({"alice": OPERATOR}) == Tenant().plain_kv_scope == ""


def test_the_entry_called_operator_is_the_operators_own_namespace(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    _, key, _ = palign("tenants", "new-key", "operator", "--file", file, "--role", "manage")
    tenant = Authenticator(file).authenticate(bearer(key))
    assert tenant.name == OPERATOR
    assert tenant.label == "operator"


def test_a_changed_file_counts_and_a_broken_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tenants.yaml"
    _, key, _ = palign("tenants", "new-key", "acme", "--file", file)
    good = file.read_text()
    authenticator = Authenticator(file)

    file.write_text("tenants: {acme: {max_strenght: 1.0}}")
    authenticator.refresh()
    assert authenticator.authenticate(bearer(key)).name == "acme"
    assert "cannot be used" in caplog.text
    file.unlink()
    authenticator.refresh()
    assert authenticator.authenticate(bearer(key)).name == "acme"

    file.write_text(good)
    authenticator.refresh()
    assert authenticator.authenticate(bearer(key)).name == "acme"
    palign("tenants", "revoke", key.split("_")[1], "--file", file)
    authenticator.refresh()
    with pytest.raises(KeyInvalid):
        authenticator.authenticate(bearer(key))


def test_the_file_is_followed_without_being_asked(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    palign("tenants", "new-key", "acme", "--file", file)
    authenticator = Authenticator(file, poll_seconds=0.01)
    authenticator.follow()
    _, key, _ = palign("tenants", "new-key", "globex", "--file", file)
    try:
        for _ in range(500):
            try:
                assert authenticator.authenticate(bearer(key)).name == "globex"
                break
            except KeyInvalid:
                authenticator._stop.wait(0.02)
        else:
            raise AssertionError("the new key was never taken")
    finally:
        authenticator.close()


def test_a_server_does_not_start_without_a_usable_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(TenantsError):
            Authenticator(path)


def test_headers_that_are_no_key_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    _, key, _ = palign("tenants", "new-key", "acme", "--file", file)
    authenticator = Authenticator(file)
    assert authenticator.authenticate(bearer(key, "bearer")).name == "acme"
    wrong = {
        "none": [],
        "two": [*bearer(key), *bearer(key)],
        "basic": bearer(key, "Basic"),
        "no scheme": [(b"authorization", key.encode())],
        "empty": [(b"authorization", b"")],
        "x-api-key": [(b"x-api-key", key.encode())],
        "cut": bearer(key[:-1]),
        "longer": bearer(key + "A"),
        "capitals": bearer(key.upper()),
        "line break": bearer(key + "\n"),
        "two keys": bearer(f"{key},{key}"),
        "other digits": bearer(key.replace("_", "_\u0660", 1)),
        "not ASCII": [(b"authorization", b"Bearer \xff\xfe")],
        "long": bearer("palign_" + "0" * 100_000),
    }
    for name, headers in wrong.items():
        with pytest.raises(KeyInvalid) as caught:
            authenticator.authenticate(headers)
        assert key not in caught.value.message, name


def test_settings_that_would_let_tenants_meet_or_keep_them_out_stop_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_beside_tenants(Namespace(api_key=None))
    with pytest.raises(PalignStartupError, match="--api-key"):
        refuse_beside_tenants(Namespace(api_key=["sk-1"]))
    for name, value in (("VLLM_API_KEY", "sk-1"), ("VLLM_ENABLE_RESPONSES_API_STORE", "1")):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            with pytest.raises(PalignStartupError, match=name):
                refuse_beside_tenants(Namespace(api_key=None))


def test_a_request_that_did_not_pass_the_gate_is_nobodys() -> None:
    assert caller.current(tenants=False) == Tenant()
    with pytest.raises(PalignStartupError):
        caller.current(tenants=True)
