"""The persona registry: (tenant, name) -> digest -> bytes, in SQLite or PostgreSQL."""

from vllm_palign.registry.records import Outcome, Page, Record
from vllm_palign.registry.registry import Registry

__all__ = ["Outcome", "Page", "Record", "Registry"]
