"""The schema's version: brought up to date at start, by whichever process comes first."""

from __future__ import annotations

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from vllm_palign.errors import PalignStartupError, RegistryUnavailable
from vllm_palign.registry.database import reading, writing

_MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(engine: Engine, *, patience: float) -> None:
    """Bring the schema to this release's version, under the write lock that all servers share.

    Raises PalignStartupError for a schema of a newer release, RegistryUnavailable when the lock is not
    free within ``patience`` seconds.
    """
    if is_current(engine):
        return
    config, script = _scripts()
    if engine.dialect.name == "sqlite":
        _use_wal(engine, patience)
    with writing(engine) as connection:
        if _version(connection, script) != script.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def is_current(engine: Engine) -> bool:
    """Whether the database is a registry of this release's version. Raises as ``migrate`` does."""
    _, script = _scripts()
    with reading(engine) as connection:
        return _version(connection, script) == script.get_current_head()


def _scripts() -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config, ScriptDirectory.from_config(config)


def _version(connection: Connection, script: ScriptDirectory) -> str | None:
    """Raises PalignStartupError if the database holds a version that this release does not know."""
    version = MigrationContext.configure(connection).get_current_revision()
    known = {revision.revision for revision in script.walk_revisions()}
    if version is not None and version not in known:
        raise PalignStartupError(
            f"--palign-store: the registry's schema has version {version!r}, this release of "
            f"vllm-palign knows up to {script.get_current_head()!r}; upgrade vllm-palign"
        )
    return version


def _use_wal(engine: Engine, patience: float) -> None:
    """SQLite's journal mode stays in the file. Changing it does not wait for a lock by itself."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with reading(engine) as connection:
                mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar()
        except RegistryUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        if mode != "wal":
            raise PalignStartupError(
                f"--palign-store: SQLite stays in journal mode {mode!r}, needed is WAL; "
                "use a local file system"
            )
        return
