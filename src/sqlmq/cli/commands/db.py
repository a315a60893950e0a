"""``sqlmq db``: create, migrate, check and remove the tables, or print the SQL."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from sqlmq import migrate
from sqlmq.cli.options import yes_option
from sqlmq.cli.output import confirm, json_option, line, say
from sqlmq.cli.settings import Settings, database_options, example, pass_settings
from sqlmq.database.database import Database
from sqlmq.dialects.postgresql.roles import grants
from sqlmq.errors import SchemaError
from sqlmq.schema import REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection


@click.group("db", epilog=example("sqlmq db upgrade --url postgresql://owner@host/app"))
@database_options
def database() -> None:
    """Create the tables and keep them up to date.

    On SQLite this happens automatically. On Postgres you run it yourself, so you decide when, and with which role.
    """


@database.command(
    epilog=example("sqlmq db upgrade", "sqlmq --url postgresql://owner@host/app db upgrade --schema queue")
)
@click.option("--to", "revision", default=REVISION, show_default=True, help="Revision to upgrade to.")
@json_option
@database_options
@pass_settings
def upgrade(settings: Settings, revision: str, *, as_json: bool) -> None:
    """Create the tables, or bring them up to date, in one transaction.

    You can run it again at any time, also from several deployments at once.
    """

    def change(connection: Connection) -> tuple[str | None, str | None]:
        before = migrate.current(connection, schema=settings.schema)
        migrate.upgrade(connection, schema=settings.schema, revision=revision)
        return before, migrate.current(connection, schema=settings.schema)

    with _open(settings) as opened:
        before, after = opened.write_unprepared(change)
    sentence = f"Upgraded from {before or 'nothing'} to {after}." if before != after else f"Already at {after}."
    say(sentence, {"before": before, "after": after}, as_json=as_json)


@database.command(epilog=example("sqlmq db downgrade --to 0001", "sqlmq db downgrade --yes"))
@click.option(
    "--to", "revision", default="base", show_default=True, help="Revision to go back to; base removes all tables."
)
@yes_option
@json_option
@database_options
@pass_settings
def downgrade(settings: Settings, revision: str, *, yes: bool, as_json: bool) -> None:
    """Downgrade the tables to an earlier revision, or remove them with all messages."""
    confirm(f"Downgrade to {revision}? The data in tables and columns that this removes is lost.", yes=yes)

    def change(connection: Connection) -> tuple[str | None, str | None]:
        before = migrate.current(connection, schema=settings.schema)
        if before is not None:
            migrate.downgrade(connection, schema=settings.schema, revision=revision)
        return before, migrate.current(connection, schema=settings.schema)

    with _open(settings) as opened:
        before, after = opened.write_unprepared(change)
    sentence = f"Downgraded from {before} to {after or 'nothing'}." if before else "There were no tables."
    say(sentence, {"before": before, "after": after}, as_json=as_json)


@database.command(epilog=example("sqlmq db current", "sqlmq db current --json"))
@json_option
@database_options
@pass_settings
def current(settings: Settings, *, as_json: bool) -> None:
    """Print the revision of the tables, and the revision that this version of sqlmq needs."""
    with _open(settings) as opened:
        found = _found(opened)
    say(f"found {found or 'no tables'}, needed {REVISION}", {"found": found, "needed": REVISION}, as_json=as_json)


@database.command(epilog=example("sqlmq db check && systemctl restart app"))
@json_option
@database_options
@pass_settings
@click.pass_context
def check(ctx: click.Context, settings: Settings, *, as_json: bool) -> None:
    """Check that the tables have the revision that this version of sqlmq needs; exit with 3 if not.

    Use it as the last step of a deployment, or the first step of an application's start. It changes nothing.
    """
    problem: str | None = None
    with _open(settings) as opened:
        found = _found(opened)
        if found is None and not _exists(opened):
            problem = "The file does not exist yet. The first use or `sqlmq db upgrade` creates it with the tables."
        else:
            try:
                opened.read_unprepared(migrate.check, schema=opened.schema)
            except SchemaError as error:
                problem = str(error)
    if as_json:
        click.echo(line({"ok": problem is None, "found": found, "needed": REVISION, "problem": problem}))
    elif problem is None:
        click.echo(f"The tables are at revision {found}, which this version needs.")
    else:
        click.echo(problem, err=True)
    ctx.exit(0 if problem is None else 3)


@database.command(
    epilog=example(
        "sqlmq db sql --dialect postgresql --schema queue > sqlmq.sql", "sqlmq db sql --dialect postgresql --start 0001"
    )
)
@click.option(
    "--start", default="base", show_default=True, help="Present revision of the tables; base if there are none."
)
@click.option("--to", "revision", default=REVISION, show_default=True, help="Revision to upgrade to.")
@click.option(
    "--dialect",
    type=click.Choice(["postgresql", "sqlite"]),
    help="Database that runs the statements. Default: the database of the URL.",
)
@database_options
@pass_settings
def sql(settings: Settings, start: str, revision: str, dialect: str | None) -> None:
    """Print the statements that `db upgrade` would run, without a database.

    Use it if only your own tools may change a schema.
    """
    try:
        name = dialect or make_url(settings.database_url()).get_backend_name()
    except ArgumentError:
        raise click.UsageError("--url is not a database URL. Give --dialect instead.") from None
    name = "postgresql" if name == "postgres" else name
    if name not in ("postgresql", "sqlite"):
        raise click.UsageError(f"sqlmq has statements for postgresql and sqlite, not for {name}.")
    with _unknown_revisions_explained():
        text = migrate.sql(
            name, schema=settings.schema if name == "postgresql" else None, start=start, revision=revision
        )
    click.echo(text, nl=False)


def _found(opened: Database) -> str | None:
    """The revision of the tables. Does not create a missing file."""
    if not _exists(opened):
        return None
    return opened.read_unprepared(migrate.current, schema=opened.schema)


def _exists(opened: Database) -> bool:
    file = opened.engine.url.database or ":memory:"
    is_plain_file = opened.dialect.creates_schema_itself and not file.startswith((":", "file:"))
    return not is_plain_file or Path(file).exists()


@database.command(
    epilog=example(
        "sqlmq db roles --consumer billing --producer shop --monitor grafana",
        "sqlmq db roles --consumer billing --schema queue | psql",
    )
)
@click.option(
    "--monitor", multiple=True, metavar="ROLE", help="May see lag, members, sizes and losses, but no message."
)
@click.option("--producer", multiple=True, metavar="ROLE", help="May append to existing topics, but read no message.")
@click.option(
    "--consumer", multiple=True, metavar="ROLE", help="May read in groups, and retry or discard dead letters."
)
@click.option("--admin", multiple=True, metavar="ROLE", help="May create and delete topics, and reset groups.")
@database_options
@pass_settings
def roles(
    settings: Settings,
    monitor: tuple[str, ...],
    producer: tuple[str, ...],
    consumer: tuple[str, ...],
    admin: tuple[str, ...],
) -> None:
    """Print the SQL that gives Postgres roles the rights they need, and no others.

    Run the SQL as the owner of the tables, again after each upgrade. The roles must exist (CREATE ROLE ... LOGIN). The
    command does not connect to a database.
    """
    named = {"monitor": monitor, "producer": producer, "consumer": consumer, "admin": admin}
    if not any(named.values()):
        raise click.UsageError("Name at least one role, as in --consumer billing.")
    for kind, names in named.items():
        for name in names:
            click.echo("".join(f"{statement};\n" for statement in grants(kind, name, schema=settings.schema)))


@contextmanager
def _open(settings: Settings) -> Iterator[Database]:
    opened = Database(settings.named_url(), settings.schema)
    try:
        with _unknown_revisions_explained():
            yield opened
    finally:
        opened.close()


@contextmanager
def _unknown_revisions_explained() -> Iterator[None]:
    from alembic.util import CommandError  # 0.1 s that only these commands need

    try:
        yield
    except CommandError as error:
        raise click.ClickException(f"{error}. `sqlmq db current` prints the present and the newest revision.") from None
