"""Run by Alembic; the caller hands over a connection with the write lock held."""

from alembic import context

from vllm_palign.registry.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
