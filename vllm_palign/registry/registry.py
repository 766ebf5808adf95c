"""Registered personas of all tenants, shared by every front end that opens the same database."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from vllm_palign.container import digest_of
from vllm_palign.errors import (
    PersonaCorrupt,
    PersonaExists,
    PersonaForbidden,
    PersonaNotFound,
    RegistryFull,
    RegistryUnavailable,
)
from vllm_palign.persona import Persona
from vllm_palign.registry import database
from vllm_palign.registry.migrate import is_current, migrate
from vllm_palign.registry.records import MAX_TEXT, Outcome, Page, Record, metadata_of
from vllm_palign.registry.schema import blobs, personas
from vllm_palign.shape import ModelShape
from vllm_palign.tenants.tenant import OPERATOR, Tenant

_MIGRATION_PATIENCE = 60.0
_DIGESTS_AT_ONCE = 500
_PURGED_AT_ONCE = 200

# Built once: to build a statement takes longer than to run it. First what requests and their first use look up.
_IS_OWN = and_(
    personas.c.tenant == bindparam("tenant"),
    personas.c.name.in_(bindparam("names", expanding=True)),
)
_IS_SHARED = and_(
    personas.c.tenant == OPERATOR, personas.c.name.in_(bindparam("shared", expanding=True))
)
_OWN = select(personas).where(_IS_OWN)
_OWN_AND_SHARED = select(personas).where(_IS_OWN | _IS_SHARED)
_WITH_BLOB = select(personas, blobs.c.data).join(blobs, blobs.c.digest == personas.c.digest)
_KEPT = select(blobs.c.digest).where(blobs.c.digest.in_(bindparam("digests", expanding=True)))
_BLOB = select(blobs.c.data).where(blobs.c.digest == bindparam("digest"))

_OWN_ONE = select(personas).where(
    personas.c.tenant == bindparam("tenant"), personas.c.name == bindparam("name")
)
_INSERT = insert(personas)
_DROP_UNUSED = delete(blobs).where(
    blobs.c.digest == bindparam("unused"), ~exists().where(personas.c.digest == bindparam("unused"))
)


class Registry:
    """Blocking; front ends call it from a bounded thread pool. Safe to use from several threads.

    Every method raises RegistryUnavailable when the database does not answer in ``timeout`` seconds.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, connections: int = 8) -> None:
        self.timeout = timeout
        self._engine = database.connect(url, timeout=timeout, connections=connections)
        self._write_lock = threading.Lock()
        self._left_over = True
        """Whether the log may hold what was removed, by a process before this one perhaps."""
        self._keep_blob = _keep_blob(
            postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        )

    def migrate(self) -> None:
        """Bring the schema up to date under a lock. Raises PalignStartupError for a newer schema."""
        migrate(self._engine, patience=_MIGRATION_PATIENCE)

    def is_current(self) -> bool:
        """Whether the database is a registry of this release, so that nothing needs to be migrated."""
        return is_current(self._engine)

    def lookup(self, tenant: Tenant, names: Iterable[str]) -> dict[str, Record]:
        """The visible records of ``names``; missing ones are left out. One indexed query."""
        with_shared, parameters = _visible(tenant, names)
        query = _OWN_AND_SHARED if with_shared else _OWN
        with database.reading(self._engine) as connection:
            rows = connection.execute(query, parameters).mappings().all()
        records = [Record(**row) for row in rows]
        # Own ones last, so that they hide shared ones.
        records.sort(key=lambda record: record.tenant == tenant.name)
        return {record.name: record for record in records}

    def get(self, tenant: Tenant, name: str) -> Record:
        """The visible record of ``name``. Raises PersonaNotFound."""
        try:
            return self.lookup(tenant, [name])[name]
        except KeyError:
            raise not_found(name) from None

    def read(self, tenant: Tenant, name: str) -> tuple[Record, bytes]:
        """The visible record of ``name`` and its bytes, verified: of one moment, also while it is replaced.

        Raises PersonaNotFound or PersonaCorrupt.
        """
        with_shared, parameters = _visible(tenant, [name])
        query = _WITH_BLOB.where(_IS_OWN | _IS_SHARED if with_shared else _IS_OWN)
        with database.reading(self._engine) as connection:
            rows = [dict(row) for row in connection.execute(query, parameters).mappings()]
        if not rows:
            raise not_found(name)
        row = max(
            rows, key=lambda row: row["tenant"] == tenant.name
        )  # an own one hides a shared one
        data = row.pop("data")
        return Record(**row), _verified(data, row["digest"])

    def blob(self, digest: str) -> bytes:
        """The bytes of ``digest``, verified. Raises PersonaNotFound or PersonaCorrupt."""
        with database.reading(self._engine) as connection:
            data = connection.execute(_BLOB, {"digest": digest}).scalar()
        if data is None:
            raise PersonaNotFound(f"no persona with digest {digest} is registered")
        return _verified(data, digest)

    def registered(self, digests: Set[str]) -> set[str]:
        """Those of ``digests`` whose bytes are kept."""
        wanted, found = sorted(digests), set[str]()
        for start in range(0, len(wanted), _DIGESTS_AT_ONCE):
            some = wanted[start : start + _DIGESTS_AT_ONCE]
            with database.reading(self._engine) as connection:
                found |= set(connection.execute(_KEPT, {"digests": some}).scalars())
        return found

    def page(
        self, tenant: Tenant, *, limit: int, after: str = "", shape: ModelShape | None = None
    ) -> Page:
        """What ``tenant`` sees, sorted by name, from behind ``after``; only what fits ``shape`` if given."""
        query = select(personas).where(personas.c.name > after)
        if shape is not None:
            query = query.where(
                personas.c.num_layers == shape.num_layers,
                personas.c.num_heads == shape.num_heads,
                personas.c.head_dim == shape.head_dim,
            )
        query = query.order_by(personas.c.name).limit(limit + 1)
        sources = [query.where(personas.c.tenant == tenant.name)]
        if tenant.name != OPERATOR:
            own = personas.alias()
            hidden = exists().where(own.c.tenant == tenant.name, own.c.name == personas.c.name)
            of_operator = query.where(personas.c.tenant == OPERATOR, ~hidden)
            if tenant.shared is not None:
                of_operator = of_operator.where(personas.c.name.in_(tenant.shared))
            sources.append(of_operator)
        with database.reading(self._engine) as connection:
            found = [
                Record(**row) for source in sources for row in connection.execute(source).mappings()
            ]
        found.sort(key=lambda record: record.name)
        return Page(tuple(found[:limit]), len(found) > limit)

    def put(
        self, tenant: Tenant, name: str, persona: Persona, data: bytes, *, replace: bool = False
    ) -> tuple[Record, Outcome]:
        """Register ``data`` (whose content is ``persona``) as the tenant's own ``name``.

        The same bytes again change nothing, except that they mend a damaged copy. Raises PersonaExists
        for other bytes under that name without ``replace``, PersonaForbidden beyond the tenant's quota,
        RegistryFull.
        """
        record = _record(tenant, name, persona, data)
        with self._writing() as connection:
            old = _own(connection, tenant, name)
            if old is None:
                _check_quota(connection, tenant)
            elif old.digest != record.digest and not replace:
                raise PersonaExists(
                    f"persona {name!r} is registered with other bytes (digest {old.digest}, yours "
                    f"{record.digest}); PUT with ?replace=true to replace it"
                )
            self._keep_blobs(connection, [(record, data)])
            if old is None:
                connection.execute(_INSERT, vars(record))
                return record, Outcome.CREATED
            if old.digest == record.digest:
                return old, Outcome.UNCHANGED
            connection.execute(update(personas).where(_is(record)), vars(record))
            _drop_unused_blob(connection, old.digest)
        self._removed()
        return record, Outcome.REPLACED

    def add_missing(
        self, tenant: Tenant, items: Sequence[tuple[str, Persona, bytes]]
    ) -> list[Record]:
        """Register those of ``items`` (name, content, bytes) whose name is still free, in one transaction.

        Returns the records of names that hold *other* bytes; they are left as they are. Names must be
        unique. Not bounded by the quota.
        """
        wanted = {
            name: (_record(tenant, name, persona, data), data) for name, persona, data in items
        }
        with self._writing() as connection:
            rows = connection.execute(
                select(personas).where(
                    personas.c.tenant == tenant.name, personas.c.name.in_(wanted)
                )
            ).mappings()
            there = [Record(**row) for row in rows]
            kept = [old for old in there if old.digest != wanted[old.name][0].digest]
            for old in there:
                del wanted[old.name]
            if wanted:
                self._keep_blobs(connection, wanted.values())
                connection.execute(_INSERT, [vars(record) for record, _ in wanted.values()])
        return kept

    def delete(self, tenant: Tenant, name: str) -> Record:
        """Remove the tenant's own ``name``. Raises PersonaNotFound, or PersonaForbidden for a shared one."""
        with self._writing() as connection:
            old = _own(connection, tenant, name)
            if old is not None:
                connection.execute(delete(personas).where(_is(old)))
                _drop_unused_blob(connection, old.digest)
        if old is not None:
            self._removed()
            return old
        if name in self.lookup(tenant, [name]):
            raise PersonaForbidden(
                f"persona {name!r} is shared with you; only its owner removes it"
            )
        raise not_found(name)

    def purge(self, owner: str) -> int:
        """Remove everything that ``owner`` has registered, whether or not it is a tenant still. Returns how many
        personas that were. Raises RegistryFull; what is removed until then stays removed.

        Not in one transaction: the others' writes would wait for it. It ends although ``owner`` goes on uploading.
        """
        mine, count = personas.c.tenant == owner, 0
        while True:
            with self._writing() as connection:
                rows = connection.execute(
                    select(personas.c.name, personas.c.digest).where(mine).limit(_PURGED_AT_ONCE)
                ).all()
                names, digests = [row.name for row in rows], {row.digest for row in rows}
                connection.execute(delete(personas).where(mine, personas.c.name.in_(names)))
                for digest in digests:
                    _drop_unused_blob(connection, digest)
            count += len(rows)
            if rows:
                self._removed()
            if len(rows) < _PURGED_AT_ONCE:
                return count

    def counts(self) -> dict[str, int]:
        """Number of registered personas by owner."""
        query = select(personas.c.tenant, func.count()).group_by(personas.c.tenant)
        with database.reading(self._engine) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def ping(self) -> None:
        """Nothing, if the database answers."""
        with database.reading(self._engine) as connection:
            connection.execute(select(personas.c.name).limit(1))

    def scrub(self) -> None:
        """Let nothing of what was removed stay in SQLite's write-ahead log. Does nothing while somebody reads or
        writes there: whoever follows up on it calls again. PostgreSQL has its own time for that (vacuum)."""
        if not self._left_over or self._engine.dialect.name != "sqlite":
            return
        emptied = False
        self._left_over = False  # before: who removes something meanwhile says so again
        try:
            emptied = database.empty_log(self._engine)
        finally:
            if not emptied:
                self._left_over = True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One writer of this process at a time asks for the lock of all processes: SQLite looks whether it is free
        only every few milliseconds, and writers who wait in PostgreSQL hold a connection each."""
        if not self._write_lock.acquire(timeout=self.timeout):
            raise RegistryUnavailable("the persona registry is busy; try again")
        try:
            with database.writing(self._engine) as connection:
                yield connection
        finally:
            self._write_lock.release()

    def _removed(self) -> None:
        self._left_over = True
        with contextlib.suppress(RegistryUnavailable, RegistryFull):  # what was asked for is done
            self.scrub()

    def close(self) -> None:
        """Drop all connections. The next call opens new ones."""
        self._engine.dispose()

    def _keep_blobs(self, connection: Connection, items: Iterable[tuple[Record, bytes]]) -> None:
        rows = [
            {"digest": record.digest, "size": record.size, "data": data} for record, data in items
        ]
        connection.execute(self._keep_blob, rows)


def _keep_blob(insert: Callable[[Table], postgresql.Insert | sqlite.Insert]) -> Executable:
    """Keeps bytes under their digest, and mends those that are there and have changed."""
    statement = insert(blobs)
    return statement.on_conflict_do_update(
        index_elements=["digest"],
        set_={"data": statement.excluded.data},
        where=blobs.c.data != statement.excluded.data,
    )


def _visible(tenant: Tenant, names: Iterable[str]) -> tuple[bool, dict[str, Any]]:
    """Whether the operator's personas have to be looked at too, and the parameters of ``_IS_OWN`` and, then,
    ``_IS_SHARED``."""
    wanted = set(names)
    shared = [name for name in wanted if tenant.name != OPERATOR and tenant.sees(OPERATOR, name)]
    parameters = {"tenant": tenant.name, "names": list(wanted)}
    return bool(shared), {**parameters, "shared": shared} if shared else parameters


def _verified(data: bytes, digest: str) -> bytes:
    found = digest_of(data)
    if found != digest:
        raise PersonaCorrupt(
            f"the registered bytes of digest {digest} have changed (sha256 is now {found}); they are not "
            "served. PUT the persona again with ?replace=true"
        )
    return bytes(data)


def not_found(name: str, *, param: str = "persona") -> PersonaNotFound:
    """The one answer for a name that does not exist and for one that the caller may not see."""
    return PersonaNotFound(f"there is no persona {name!r} on this server", param=param)


def _record(tenant: Tenant, name: str, persona: Persona, data: bytes) -> Record:
    return Record(
        tenant=tenant.name,
        name=name,
        digest=persona.digest,
        size=len(data),
        num_layers=persona.num_layers,
        num_heads=persona.num_heads,
        head_dim=persona.head_dim,
        base_model=persona.base_model[:MAX_TEXT],
        created=int(time.time()),
        metadata=metadata_of(persona),
    )


def _is(record: Record) -> ColumnElement[bool]:
    return and_(personas.c.tenant == record.tenant, personas.c.name == record.name)


def _own(connection: Connection, tenant: Tenant, name: str) -> Record | None:
    parameters = {"tenant": tenant.name, "name": name}
    row = connection.execute(_OWN_ONE, parameters).mappings().one_or_none()
    return None if row is None else Record(**row)


def _check_quota(connection: Connection, tenant: Tenant) -> None:
    if tenant.quota is None:
        return
    query = select(func.count()).where(personas.c.tenant == tenant.name)
    count = connection.execute(query).scalar_one()
    if count >= tenant.quota:
        raise PersonaForbidden(
            f"{count} personas are registered, the quota is {tenant.quota}; delete one first"
        )


def _drop_unused_blob(connection: Connection, digest: str) -> None:
    connection.execute(_DROP_UNUSED, {"unused": digest})
