"""What Alembic runs for each command. The queue's tables are not the application's: autogenerate leaves them alone."""

from __future__ import annotations

from alembic import context
from sqlalchemy import NullPool, create_engine

from examples.fastapi_orders.tables import Base, url_from_environment
from sqlmq.migrate import include_name

with create_engine(url_from_environment(), poolclass=NullPool).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, include_name=include_name)
    with context.begin_transaction():
        context.run_migrations()
