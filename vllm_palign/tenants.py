"""The tenants file: which API key belongs to which tenant, and what each may do.

A key is ``palign_<id>_<secret>``; the file holds its id, a salt and a hash. The secret is 256 random bits
made by ``palign tenants new-key``, so nobody can guess it, a slow hash would protect nothing, and a key
is checked with one HMAC a request. Only what could be *chosen* badly, the key, cannot be chosen.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Hashable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_palign.caller import MANAGE, OPERATOR, USE, Caller
from vllm_palign.errors import PalignError
from vllm_palign.persona import is_persona_id

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_SHARED = 1000
MAX_LABELS = 100
"""Tenants with a metrics label of their own: the first in the file. The rest are ``other``."""

KEY_PATTERN = re.compile(r"palign_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)


class TenantsError(PalignError):
    """The tenants file cannot be used; the message says where and why."""

    code = "palign_tenants"


def _tenant_name(name: str) -> str:
    # One case only: names that differ in capitals could be taken for each other.
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name, re.ASCII):
        raise ValueError(
            f"{name!r} cannot name a tenant; wanted 1 to 63 of a-z 0-9 -, beginning with a letter or digit"
        )
    return name


def _persona_name(name: str) -> str:
    if not is_persona_id(name):
        raise ValueError(f"{name!r} cannot name a persona")
    return name


TenantName = Annotated[str, AfterValidator(_tenant_name)]
PersonaName = Annotated[str, AfterValidator(_persona_name)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KeyRecord(_Entry):
    """What is kept of an API key: nothing that lets anybody make it again."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    roles: list[Literal["use", "manage"]] = Field(default=[USE], min_length=1, max_length=2)
    created: datetime | None = None

    def matches(self, secret: str) -> bool:
        return hmac.compare_digest(_hash(self.salt, secret), self.hash)


class SharedPersona(_Entry):
    """One of the operator's personas that tenants may be given."""

    share_kv: bool = False
    """Whether tenants' requests with it may meet in the KV cache, so that one can learn from timing that
    another has sent the same prompt."""


class Tenant(_Entry):
    keys: list[KeyRecord] = Field(default=[], max_length=100)
    shared: list[PersonaName] = Field(default=[], max_length=MAX_SHARED)
    max_strength: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    max_personas: int | None = Field(default=None, ge=0, le=10_000_000)


class Tenants(_Entry):
    """The whole file. ``tenants`` in file order."""

    version: Literal[1]
    share_plain_kv: bool = False
    """Whether requests without a persona may meet in the KV cache across tenants."""
    shared: dict[PersonaName, SharedPersona] = Field(default={}, max_length=MAX_SHARED)
    tenants: dict[TenantName, Tenant] = Field(default={}, max_length=100_000)

    @model_validator(mode="after")
    def _consistent(self) -> Tenants:
        seen: set[str] = set()
        for name, tenant in self.tenants.items():
            unknown = sorted(set(tenant.shared) - self.shared.keys())
            if unknown:
                raise ValueError(
                    f"tenant {name!r} is given {unknown[:5]}, not listed under 'shared'"
                )
            for key in tenant.keys:
                if key.id in seen:
                    raise ValueError(f"key {key.id} is there twice")
                seen.add(key.id)
        return self

    @classmethod
    def read(cls, path: str | Path) -> Tenants:
        """Parse and check the file. Raises TenantsError."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise TenantsError(f"{path}: cannot be read: {error.strerror}") from None
        if len(data) > MAX_FILE_BYTES:
            raise TenantsError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, name: str) -> Tenants:
        """Raises TenantsError; nothing of the file's hashes is in its message."""
        try:
            content = _load_yaml(data)
        except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
            raise TenantsError(f"{name}: not usable YAML: {' '.join(str(error).split())}") from None
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
                for problem in error.errors(include_input=False)[:5]
            )
            raise TenantsError(f"{name}: {problems}") from None


class KeyTable:
    """API key -> ``Caller``, made once of a ``Tenants``."""

    def __init__(self, tenants: Tenants) -> None:
        self._by_id: dict[str, tuple[KeyRecord, Caller]] = {}
        for index, (name, tenant) in enumerate(tenants.tenants.items()):
            for key in tenant.keys:
                self._by_id[key.id] = (
                    key,
                    Caller(
                        tenant=name,
                        roles=frozenset(key.roles),
                        key_id=key.id,
                        label=name if index < MAX_LABELS else "other",
                        max_strength=tenant.max_strength,
                        max_personas=tenant.max_personas,
                        shared={
                            persona: tenants.shared[persona].share_kv for persona in tenant.shared
                        },
                        isolated=True,
                        isolated_plain=not tenants.share_plain_kv,
                    ),
                )

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, key: str) -> Caller | None:
        """Whose key this is, or None. One HMAC-SHA256; no list is searched."""
        parts = KEY_PATTERN.fullmatch(key)
        known = self._by_id.get(parts[1]) if parts else None
        if parts is None or known is None:
            return None
        record, caller = known
        return caller if record.matches(parts[2]) else None


def new_key(roles: list[Literal["use", "manage"]], created: datetime) -> tuple[str, KeyRecord]:
    """A fresh API key and what to keep of it. The key itself exists nowhere else."""
    key_id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
    record = KeyRecord(
        id=key_id, salt=salt, hash=_hash(salt, secret), roles=roles, created=created
    )
    return f"palign_{key_id}_{secret}", record


def _hash(salt: str, secret: str) -> str:
    return hmac.new(bytes.fromhex(salt), secret.encode(), hashlib.sha256).hexdigest()


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that refuses keys given twice: the second of two tenants of one name would win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 if len(keys) < 50 else False:
                raise ValueError(f"the key {key!r} is there twice")
        if len(set(keys)) != len(keys):
            raise ValueError("a key is there twice")
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _load_yaml(data: bytes) -> Any:
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            # A few nested aliases stand for billions of values.
            raise ValueError("aliases (*name) are not taken; write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > 20:
                raise ValueError("nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.load(data, Loader=_Loader)  # noqa: S506 (a safe loader)


__all__ = [
    "MANAGE",
    "OPERATOR",
    "USE",
    "KeyRecord",
    "KeyTable",
    "SharedPersona",
    "Tenant",
    "Tenants",
    "TenantsError",
    "new_key",
]
