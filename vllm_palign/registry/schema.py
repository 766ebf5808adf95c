"""The tables, as the newest migration leaves them."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# Names are compared and sorted as bytes, whatever locale a PostgreSQL database has.
_NAME = String(128).with_variant(String(128, collation="C"), "postgresql")

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("size", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

personas = Table(
    "personas",
    metadata,
    Column("tenant", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("digest", String(64), ForeignKey("blobs.digest"), nullable=False),
    Column("size", Integer, nullable=False),
    Column("num_layers", Integer, nullable=False),
    Column("num_heads", Integer, nullable=False),
    Column("head_dim", Integer, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("metadata", JSON, nullable=False),
    # Whether a blob is still used is asked by digest.
    Index("personas_by_digest", "digest"),
)
