"""The audit log: one JSON line per management call and per refused request.

Never a prompt, a body, a key or an error message (which may quote what the client sent). Lines go to the
logger ``palign.audit``, on stderr unless the operator configures that logger
(``VLLM_LOGGING_CONFIG_PATH``).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

MAX_FIELD = 200
"""Characters kept of a text field, so that a line stays below the 4 KiB that pipes write as one."""

_logger = logging.getLogger("palign.audit")

Value = str | int | None


def start() -> None:
    """Let the log reach stderr, unless the operator has given it handlers."""
    _logger.setLevel(logging.INFO)
    if _logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _logger.addHandler(handler)
    _logger.propagate = False


def write(event: str, fields: Mapping[str, Value]) -> None:
    """Log one line. Texts are cut to MAX_FIELD characters, fields that are None left out."""
    record: dict[str, Value] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
    }
    for name, value in fields.items():
        if value is not None:
            record[name] = value[:MAX_FIELD] if isinstance(value, str) else value
    # ASCII: line breaks and everything a terminal could act on are escaped.
    _logger.info("%s", json.dumps(record, ensure_ascii=True))
