"""The tenants file: which API key belongs to which tenant, and what each may do.

A key is ``palign_<id>_<secret>``; the file holds its id, a salt and a hash. The secret is 256 random bits
that ``palign tenants new-key`` makes. Nobody can guess it and nobody can choose a weak one, so a slow hash
would protect nothing, and a key costs one HMAC a request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_palign.errors import PalignError
from vllm_palign.persona import is_persona_id
from vllm_palign.tenants import strict_yaml
from vllm_palign.tenants.tenant import OPERATOR, Role, Tenant

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_SHARED = 1000
MAX_LABELS = 100
"""Tenants with a metrics label of their own, see ``Labels``. The rest are ``other``."""
OPERATOR_ENTRY = "operator"
"""The entry of the file that stands for the operator's own namespace."""

_KEY = re.compile(r"palign_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
# One case only: names that differ in capitals could be taken for each other.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)


class TenantsError(PalignError):
    """The tenants file cannot be used; the message says where and why."""

    code = "palign_tenants"


def _tenant_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name == "other":
        raise ValueError(
            f"{name!r} cannot name a tenant; wanted 1 to 63 of a-z 0-9 -, beginning with a letter or "
            "digit, and not 'other'"
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
    roles: list[Role] = Field(min_length=1, max_length=2)
    created: datetime | None = None

    def matches(self, secret: str) -> bool:
        return hmac.compare_digest(_hash(self.salt, secret), self.hash)


class SharedPersona(_Entry):
    """One of the operator's personas that tenants may be given."""

    share_kv: bool = False
    """Whether tenants' requests with it may meet in the KV cache. One tenant can then learn from timing
    that another has sent the same beginning of a prompt."""


class TenantEntry(_Entry):
    keys: list[KeyRecord] = Field(default=[], max_length=100)
    shared: list[PersonaName] = Field(default=[], max_length=MAX_SHARED)
    max_strength: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    max_personas: int | None = Field(default=None, ge=0)


class TenantsFile(_Entry):
    """The whole file, ``tenants`` in its order."""

    share_plain_kv: bool = False
    """Whether requests without a persona may meet in the KV cache across tenants."""
    shared: dict[PersonaName, SharedPersona] = Field(default={}, max_length=MAX_SHARED)
    tenants: dict[TenantName, TenantEntry] = Field(default={})

    @model_validator(mode="after")
    def _consistent(self) -> TenantsFile:
        seen: set[str] = set()
        for name, entry in self.tenants.items():
            unknown = sorted(set(entry.shared) - self.shared.keys())
            if unknown:
                raise ValueError(
                    f"tenant {name!r} is given {unknown[:5]}, which are not under 'shared'"
                )
            for key in entry.keys:
                if key.id in seen:
                    raise ValueError(f"key {key.id} is there twice")
                seen.add(key.id)
        return self

    @classmethod
    def read(cls, path: str | Path) -> TenantsFile:
        """Parse and check the file. Raises TenantsError; no hash is ever in its message."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise TenantsError(f"{path}: cannot be read: {reason}") from None
        if len(data) > MAX_FILE_BYTES:
            raise TenantsError(f"{path}: is larger than {MAX_FILE_BYTES >> 20} MiB")
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, source: str) -> TenantsFile:
        """Raises TenantsError, naming ``source``."""
        try:
            return cls.model_validate(strict_yaml.load(data))
        except strict_yaml.YamlError as error:
            raise TenantsError(f"{source}: {error.message}") from None
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg'].removeprefix('Value error, ')}"
                for problem in error.errors(include_input=False)[:5]
            )
            raise TenantsError(f"{source}: {problems}") from None


class Labels:
    """Which tenants have a metrics label of their own: the first of the first file, and as files replace one
    another, the first that are new, until there are MAX_LABELS. A label once used stays in the metrics for as
    long as the server runs, whether or not its tenant does."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of(self, tenant: str) -> str:
        if len(self._given) < MAX_LABELS:
            self._given.add(tenant)
        return tenant if tenant in self._given else "other"


class KeyTable:
    """API key -> ``Tenant``, made once of a ``TenantsFile``."""

    def __init__(self, file: TenantsFile, labels: Labels) -> None:
        self._by_id: dict[str, tuple[KeyRecord, Tenant]] = {}
        for name, entry in file.tenants.items():
            label = labels.of(name)
            for key in entry.keys:
                self._by_id[key.id] = (key, _tenant(file, name, entry, key, label))

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, key: str) -> Tenant | None:
        """Whose key this is, or None."""
        parts = _KEY.fullmatch(key)
        known = self._by_id.get(parts[1]) if parts else None
        if parts is None or known is None:
            return None
        record, tenant = known
        return tenant if record.matches(parts[2]) else None


def new_key(roles: Sequence[Role], created: datetime) -> tuple[str, KeyRecord]:
    """A fresh API key and what to keep of it. The key itself is nowhere else."""
    key_id, salt, secret = secrets.token_hex(6), secrets.token_hex(16), secrets.token_urlsafe(32)
    record = KeyRecord(
        id=key_id, salt=salt, hash=_hash(salt, secret), roles=list(roles), created=created
    )
    return f"palign_{key_id}_{secret}", record


def _tenant(file: TenantsFile, name: str, entry: TenantEntry, key: KeyRecord, label: str) -> Tenant:
    return Tenant(
        name=OPERATOR if name == OPERATOR_ENTRY else name,
        shared=frozenset(entry.shared),
        may_use="use" in key.roles,
        may_manage="manage" in key.roles,
        max_strength=entry.max_strength,
        quota=entry.max_personas,
        shared_kv=frozenset(name for name in entry.shared if file.shared[name].share_kv),
        isolated=True,
        isolated_plain=not file.share_plain_kv,
        label=label,
        key_id=key.id,
    )


def _hash(salt: str, secret: str) -> str:
    return hmac.new(bytes.fromhex(salt), secret.encode(), hashlib.sha256).hexdigest()
