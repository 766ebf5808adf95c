"""Passwords of registries out of vLLM's log: it prints the arguments it was given, ours among them."""

from __future__ import annotations

import logging

from vllm_palign.config.store_url import without_passwords

_LOGGER = "vllm.entrypoints.serve.utils.api_utils"
"""What prints "non-default args". On the logger, because vLLM makes its handlers anew."""


class _Redacting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_passwords(record.getMessage()), ()
        return True


def keep_passwords_out_of_logs() -> None:
    """Safe to call again."""
    logger = logging.getLogger(_LOGGER)
    if not any(isinstance(present, _Redacting) for present in logger.filters):
        logger.addFilter(_Redacting())
