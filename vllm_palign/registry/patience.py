"""How long we wait for PostgreSQL when it says nothing at all.

``statement_timeout`` is the server's own promise, and TCP is content as long as the machine answers: a server
that hangs, or a proxy in front of one that is gone, would hold a thread for ever.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, OperationalError
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event


def bound(engine: Engine, seconds: float) -> None:
    """Let every exchange of ``engine``'s connections fail after ``seconds``; the connection is closed then."""

    class Impatient(Connection[Any]):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, seconds if timeout is None else timeout)
            except OperationalError:
                if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    self.close()
                raise

    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> Connection[Any]:
        return Impatient.connect(*arguments, **options)
