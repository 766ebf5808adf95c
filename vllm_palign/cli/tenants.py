"""``palign tenants``: API keys in and out of a tenants file, its comments and order kept."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from ruamel.yaml import YAML

from vllm_palign.errors import PalignError
from vllm_palign.files import write_bytes
from vllm_palign.tenants.file import OPERATOR_ENTRY, TenantsError, TenantsFile, new_key
from vllm_palign.tenants.tenant import Role

if TYPE_CHECKING:
    from vllm_palign.registry import Registry

tenants = typer.Typer(help="API keys and rights of tenants.", no_args_is_help=True)

_NEW = """\
# Tenants of a palign server: vllm serve ... --plugin palign --palign-tenants THIS_FILE
# See docs/tenants.md. A running server reads it again when it changes.
shared: {}
tenants: {}
"""


class RoleChoice(StrEnum):
    use = "use"
    manage = "manage"


FileOption = Annotated[Path, typer.Option("--file", help="The tenants file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]


@tenants.command(
    "new-key", epilog="Example: palign tenants new-key acme --file tenants.yaml --role manage"
)
def make_key(
    tenant: Annotated[str, typer.Argument(help="Whose key; a tenant that is new is added.")],
    file: FileOption,
    role: Annotated[
        list[RoleChoice] | None,
        typer.Option(help="use: ask with personas. manage: also add and remove them. Repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key, keep its salted hash in the file and print the key, once."""
    # To manage without being able to try is of no use to anybody.
    roles = sorted({RoleChoice.use, *(role or [])})
    key, record = new_key(
        [cast(Role, str(role)) for role in roles], datetime.now(UTC).replace(microsecond=0)
    )

    def add(content: dict[str, Any]) -> None:
        entry = content.setdefault("tenants", {}).setdefault(tenant, {})
        entry.setdefault("keys", []).append(
            {**record.model_dump(exclude={"created"}), "created": record.created}
        )

    _edit(file, add, create=True)
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "id": record.id, "roles": roles, "key": key}))
    else:
        typer.echo(
            f"key {record.id} of {tenant}, for: {', '.join(roles)}. Shown only now:", err=True
        )
        typer.echo(key)


@tenants.command(epilog="Example: palign tenants revoke 0123456789ab --file tenants.yaml")
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, the part after 'palign_'.")],
    file: FileOption,
) -> None:
    """Take an API key out of the file. Running servers refuse it within seconds."""

    def remove(content: dict[str, Any]) -> None:
        for entry in (content.get("tenants") or {}).values():
            keys = entry.get("keys") or []
            for index, key in enumerate(keys):
                if key["id"] == key_id:
                    del keys[index]
                    return
        raise TenantsError(f"{file}: there is no key {key_id!r}")

    _edit(file, remove)
    typer.echo(f"key {key_id} revoked", err=True)


@tenants.command(epilog="Example: palign tenants check --file tenants.yaml")
def check(file: FileOption, as_json: JsonOption = False) -> None:
    """Check the file as a server would, and list its tenants."""
    try:
        content = TenantsFile.read(file)
    except TenantsError as error:
        raise _fail(error) from None
    if as_json:
        hidden = {"tenants": {"__all__": {"keys": {"__all__": {"salt", "hash"}}}}}
        typer.echo(content.model_dump_json(exclude=hidden))
        return
    for name, entry in content.tenants.items():
        bounds = (
            f"strength <= {entry.max_strength:g}" if entry.max_strength is not None else "",
            f"personas <= {entry.max_personas}" if entry.max_personas is not None else "",
            f"shared: {', '.join(entry.shared)}" if entry.shared else "",
        )
        typer.echo("  ".join((name, *filter(None, bounds))))
        for key in entry.keys:
            typer.echo(f"  key {key.id}  {', '.join(key.roles)}  {key.created or ''}".rstrip())


def _opened(store: str) -> Registry:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from vllm_palign.registry import Registry

    file = None
    with suppress(ArgumentError, ValueError):  # which the registry says better
        url = make_url(store)
        file = url.database if url.drivername == "sqlite" else None
    if file and not Path(file).is_file():
        raise TenantsError(f"--store: there is no file {file!r}")
    registry = Registry(store)
    if not registry.is_current():
        raise TenantsError(
            "--store: is no registry of this release; a server that starts with it makes one of it"
        )
    return registry


@tenants.command(
    epilog="Example: palign tenants purge acme --store postgresql://palign@db/palign --yes"
)
def purge(
    tenant: Annotated[str, typer.Argument(help="Whose personas; it need not be in the file.")],
    store: Annotated[str, typer.Option(help="The registry, as --palign-store names it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete all personas of a tenant from the registry. Running servers forget them within half a minute."""
    try:
        if tenant in ("", OPERATOR_ENTRY):
            raise TenantsError("wanted a tenant; the operator's personas are everybody's")
        registry = _opened(store)
        count = registry.counts().get(tenant, 0)
        if count and not yes:
            typer.confirm(f"Delete {count} personas of {tenant}?", abort=True, err=True)
        count = registry.purge(tenant)
    except PalignError as error:
        raise _fail(error) from None
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "deleted": count}))
    else:
        typer.echo(f"{count} personas of {tenant} deleted", err=True)


def _edit(file: Path, change: Callable[[dict[str, Any]], None], *, create: bool = False) -> None:
    """Apply ``change``, check the result as a server would, and replace the file in one step."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        with _alone(file):
            if not (create and not file.exists()):
                TenantsFile.read(file)  # also bounds what is parsed below
            content = yaml.load(file.read_bytes() if file.exists() else _NEW)
            change(content)
            text = io.StringIO()
            yaml.dump(content, text)
            data = text.getvalue().encode()
            TenantsFile.parse(data, str(file))
            _replace(file, data)
    except OSError as error:
        raise _fail(TenantsError(f"{file}: {error.strerror}")) from None
    except PalignError as error:
        raise _fail(error) from None


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """No other ``palign tenants`` changes a file of this folder meanwhile: of two at once, the later would
    undo the earlier, and a key that was revoked would be back."""
    parent = file.resolve().parent
    try:
        folder = os.open(parent, os.O_RDONLY)
    except FileNotFoundError:
        raise TenantsError(f"{file}: there is no folder {str(parent)!r}; make it first") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(file: Path, data: bytes) -> None:
    """With the old file's permissions; a new one is the owner's alone."""
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    write_bytes(file.resolve(), data, mode=mode)


def _fail(error: PalignError) -> typer.Exit:
    typer.echo(f"palign: {error.message}", err=True)
    return typer.Exit(2)
