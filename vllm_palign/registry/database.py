"""Connections: what SQLite and PostgreSQL need to behave alike, and their failures as ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vllm_palign.config.store_url import StoreUrl
from vllm_palign.errors import PalignStartupError, RegistryFull, RegistryUnavailable

_DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_WRITE_LOCK = 0x70616C69676E  # "palign"
_FULL = re.compile(r"database or disk is full|No space left|could not extend file")


def connect(url: str, *, timeout: float, connections: int) -> Engine:
    """An engine for ``sqlite:///FILE`` or ``postgresql://...``; nothing is connected yet, and of SQLite there is a file.

    Raises PalignStartupError for any other URL, without its password.
    """
    try:
        parsed = sqlalchemy.make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (ArgumentError, KeyError, ValueError):  # ValueError: a port that is no number
        raise PalignStartupError(
            f"--palign-store: got {StoreUrl(url)!r}, wanted sqlite:///FILE or "
            "postgresql://USER@HOST[:PORT]/DATABASE"
        ) from None
    parsed = parsed.set(drivername=driver)
    if driver == "sqlite":
        if parsed.database in (None, "", ":memory:") or "mode" in parsed.query:
            raise PalignStartupError(
                f"--palign-store: {StoreUrl(url)!r} names no file; all processes of a "
                "server, and those after a restart, must find the same one"
            )
        _create_private(parsed.database)
        arguments: dict[str, Any] = {"timeout": timeout}
    else:
        # The server's own limits are the shorter ones: they leave the connection usable.
        milliseconds = int(timeout * 800)
        arguments = {
            "connect_timeout": max(2, int(timeout)),  # libpq takes less than 2 s for 2 s
            "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
            "application_name": "vllm-palign",
        }
    try:
        engine = sqlalchemy.create_engine(
            parsed,
            connect_args=arguments,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=timeout,
            pool_pre_ping=driver != "sqlite",
            hide_parameters=True,
        )
        if driver != "sqlite":
            from vllm_palign.registry import patience

            patience.bound(engine, timeout)
    except ImportError:
        raise PalignStartupError(
            "--palign-store: PostgreSQL needs psycopg; pip install 'vllm-palign[postgres]'"
        ) from None
    if driver == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for single statements. Raises RegistryUnavailable."""
    with _translated(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other write of any process overlaps; committed at the end or not at all.

    One writer at a time, so that checks (is the name free, is the blob still used, the quota) hold until the
    commit. Raises RegistryUnavailable or RegistryFull.
    """
    with _translated(), engine.connect() as connection:
        connection.execution_options(palign_writes=True)
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITE_LOCK})
            yield connection


def empty_log(engine: Engine) -> bool:
    """Bring SQLite's write-ahead log into the database and leave it empty. Returns whether that was possible at once;
    others that read or write are not waited for. Raises RegistryUnavailable."""
    with reading(engine) as connection:
        patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        try:
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(patience)}")
    return not busy


def _create_private(file: str) -> None:
    """A new SQLite file is its owner's alone, as its log beside it then is: a persona is its person's answers in
    another form. What is wrong with the path SQLite itself says.

    A file that is there keeps the rights it has, and is not opened: to close it would take the locks of all this
    process's connections to it (https://sqlite.org/howtocorrupt.html, section 2.2), and the next process to leave
    would remove the log that they write to.
    """
    with suppress(OSError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver would begin a transaction by itself, and too late for a write lock: see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    # An acknowledged PUT must survive a power cut, which WAL with NORMAL does not promise.
    cursor.execute("PRAGMA synchronous = FULL")
    # What was deleted is overwritten, not only unlinked.
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("palign_writes"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise RegistryUnavailable("the persona registry is busy; try again") from error
    except DBAPIError as error:
        cause = error.orig
        if getattr(cause, "sqlstate", None) == "53100" or _FULL.search(str(cause)):
            raise RegistryFull(
                "the persona registry has no room left; nothing was changed"
            ) from error
        raise RegistryUnavailable(
            f"the persona registry does not answer ({type(cause).__name__}); try again"
        ) from error
    except SQLAlchemyError as error:
        raise RegistryUnavailable(
            f"the persona registry failed ({type(error).__name__}); try again"
        ) from error
