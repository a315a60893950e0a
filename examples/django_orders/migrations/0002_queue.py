"""The queue's tables, made by its own migrations.

They run on a connection of SQLAlchemy's, in a transaction of their own, and so this one is not atomic. The revision is
named, so that this migration never changes its meaning. `sqlmq db upgrade`, run beside `migrate`, does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import migrations
from sqlalchemy import URL, NullPool, create_engine

from sqlmq import migrate

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from sqlalchemy import Engine

REVISION = "0001"


def engine_of(schema_editor: BaseDatabaseSchemaEditor) -> Engine:
    """An engine for the database that Django is migrating; in Django's tests that is another one than usual."""
    settings = schema_editor.connection.settings_dict
    url = URL.create(
        "postgresql+psycopg",
        username=settings["USER"] or None,
        password=settings["PASSWORD"] or None,
        host=settings["HOST"] or None,
        port=int(settings["PORT"]) if settings["PORT"] else None,
        database=settings["NAME"],
    )
    return create_engine(url, poolclass=NullPool)


def upgrade(_apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with engine_of(schema_editor).begin() as connection:
        migrate.upgrade(connection, revision=REVISION)


def downgrade(_apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with engine_of(schema_editor).begin() as connection:
        migrate.downgrade(connection)


class Migration(migrations.Migration):
    """Runs the queue's migrations."""

    atomic = False
    dependencies = (("django_orders", "0001_initial"),)
    operations = (migrations.RunPython(upgrade, downgrade),)
