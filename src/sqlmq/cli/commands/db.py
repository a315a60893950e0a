"""``sqlmq db``: the tables made, brought up to date, checked, removed, or printed as SQL."""

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
    """Make the tables and keep them up to date.

    On SQLite that happens by itself. On Postgres it is a step of its own, so that you decide when, and by which role.
    """


@database.command(
    epilog=example("sqlmq db upgrade", "sqlmq --url postgresql://owner@host/app db upgrade --schema queue")
)
@click.option("--to", "revision", default=REVISION, show_default=True, help="Revision to bring the tables to.")
@json_option
@database_options
@pass_settings
def upgrade(settings: Settings, revision: str, *, as_json: bool) -> None:
    """Make the tables, or bring them up to date, in one transaction.

    May be run any number of times, by several deployments at once too.
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
@click.option("--to", "revision", default="base", show_default=True, help="Revision to go back to; base removes all.")
@yes_option
@json_option
@database_options
@pass_settings
def downgrade(settings: Settings, revision: str, *, yes: bool, as_json: bool) -> None:
    """Take the tables back to an earlier revision, or remove them, with the messages in them."""
    confirm(f"Go back to {revision}? What the newer tables hold is lost.", yes=yes)

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
    """Print the revision the tables are at, and the one this version of sqlmq needs."""
    with _open(settings) as opened:
        found = _found(opened)
    say(f"found {found or 'no tables'}, needed {REVISION}", {"found": found, "needed": REVISION}, as_json=as_json)


@database.command(epilog=example("sqlmq db check && systemctl restart app"))
@json_option
@database_options
@pass_settings
@click.pass_context
def check(ctx: click.Context, settings: Settings, *, as_json: bool) -> None:
    """Check that the tables are the ones this version of sqlmq works with; exit with 3 if not.

    For a deployment's last step, or the first of an application's start. Changes nothing.
    """
    problem: str | None = None
    with _open(settings) as opened:
        found = _found(opened)
        if found is None and not _exists(opened):
            problem = "There is no such file yet. It is made, with the tables, on first use or by `sqlmq db upgrade`."
        else:
            try:
                opened.read_unprepared(migrate.check, schema=opened.schema)
            except SchemaError as error:
                problem = str(error)
    if as_json:
        click.echo(line({"ok": problem is None, "found": found, "needed": REVISION, "problem": problem}))
    elif problem is None:
        click.echo(f"The tables are at revision {found}, as they should be.")
    else:
        click.echo(problem, err=True)
    ctx.exit(0 if problem is None else 3)


@database.command(
    epilog=example(
        "sqlmq db sql --dialect postgresql --schema queue > sqlmq.sql", "sqlmq db sql --dialect postgresql --start 0001"
    )
)
@click.option("--start", default="base", show_default=True, help="Revision the tables are at; base for none.")
@click.option("--to", "revision", default=REVISION, show_default=True, help="Revision to bring them to.")
@click.option(
    "--dialect",
    type=click.Choice(["postgresql", "sqlite"]),
    help="Database the statements are for; that of the URL if not given.",
)
@database_options
@pass_settings
def sql(settings: Settings, start: str, revision: str, dialect: str | None) -> None:
    """Print the statements that `db upgrade` would run, without a database.

    For those who let nobody but their own tools change a schema.
    """
    try:
        name = dialect or make_url(settings.database_url()).get_backend_name()
    except ArgumentError:
        raise click.UsageError("--url is no database URL; --dialect alone will do.") from None
    name = "postgresql" if name == "postgres" else name
    if name not in ("postgresql", "sqlite"):
        raise click.UsageError(f"There are statements for postgresql and sqlite, not for {name}.")
    with _unknown_revisions_explained():
        text = migrate.sql(
            name, schema=settings.schema if name == "postgresql" else None, start=start, revision=revision
        )
    click.echo(text, nl=False)


def _found(opened: Database) -> str | None:
    """The revision the tables are at; asking does not make a file."""
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
@click.option("--monitor", multiple=True, metavar="ROLE", help="Sees lag, members, sizes and losses; no message.")
@click.option("--producer", multiple=True, metavar="ROLE", help="Appends to topics that are there; reads no message.")
@click.option("--consumer", multiple=True, metavar="ROLE", help="Reads in groups, and decides about dead letters.")
@click.option("--admin", multiple=True, metavar="ROLE", help="Makes and deletes topics, moves groups.")
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

    To be run by the owner of the tables, again after each upgrade. The roles have to be there (CREATE ROLE ... LOGIN). Connects to
    no database.
    """
    named = {"monitor": monitor, "producer": producer, "consumer": consumer, "admin": admin}
    if not any(named.values()):
        raise click.UsageError("Name at least one role, as in --consumer billing.")
    for kind, names in named.items():
        for name in names:
            click.echo("".join(f"{statement};\n" for statement in grants(kind, name, schema=settings.schema)))


@contextmanager
def _open(settings: Settings) -> Iterator[Database]:
    opened = Database(settings.database_url(), settings.schema)
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
        raise click.ClickException(f"{error}. `sqlmq db current` prints the revisions there are.") from None
