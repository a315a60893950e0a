"""What `sqlmq db sql` and `sqlmq db roles` print goes through psql as it is: in odd schemas, by a schema's owner."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sqlalchemy import create_engine

from case import Case, NotTriedError, administrator, last_line, run, text_of, upgrade
from sqlmq import MQ, Message, migrate

if TYPE_CHECKING:
    from sqlalchemy import URL

SCHEMAS = ("queue", "Od d", "100%", 'q"uote', "a.b")
ROLES = {"producer": "app-user", "consumer": "App User", "monitor": 'q"r', "admin": "select"}


def judge(case: Case) -> None:
    if shutil.which("psql") is None:
        raise NotTriedError("psql is not installed.")
    run_whole(case)
    for schema in SCHEMAS:
        run_in_schema(case, schema)
    for revision in older_revisions():
        run_from(case, revision)
    run_as_owner(case)
    grant_to_odd_names(case)


def run_whole(case: Case) -> None:
    statements = printed(case, "db", "sql", "--dialect", "postgresql")
    with case.postgres_database() as database:
        if psql(case, "db sql", database, statements):
            use(case, "db sql", database)
    with case.postgres_database() as database:
        psql(case, "db sql, in one transaction", database, statements, "-1")


def run_in_schema(case: Case, schema: str) -> None:
    name = f"db sql --schema {schema!r}"
    with case.postgres_database() as database:
        if psql(case, name, database, printed(case, "db", "sql", "--dialect", "postgresql", "--schema", schema)):
            use(case, name, database, schema)


def older_revisions() -> list[str]:
    script = migrate._script()
    return [revision.revision for revision in script.walk_revisions() if not revision.is_head]


def run_from(case: Case, revision: str) -> None:
    name = f"db sql --start {revision}"
    with case.postgres_database() as database:
        with create_engine(database).begin() as connection:
            migrate.upgrade(connection, revision=revision)
        if psql(case, name, database, printed(case, "db", "sql", "--dialect", "postgresql", "--start", revision)):
            use(case, name, database)


def run_as_owner(case: Case) -> None:
    """Run the statements as the owner of the schema, who may create no other."""
    with case.role() as role, case.postgres_database() as database:
        mine = role.set(database=database.database)
        create_schema = f"CREATE SCHEMA queue AUTHORIZATION {role.username}"
        case.execute(create_schema, url=database)
        statements = printed(case, "db", "sql", "--dialect", "postgresql", "--schema", "queue")
        if psql(case, "db sql, by the owner of the schema", mine, statements):
            use(case, "db sql, by the owner of the schema", mine, "queue")

        case.execute("DROP SCHEMA queue CASCADE", create_schema, url=database)
        environment = {"SQLMQ_URL": text_of(mine)}
        ended = case.run_command("db", "upgrade", "--schema", "queue", environment=environment)
        if ended.returncode == 0:
            use(case, "db upgrade, by the owner of the schema", mine, "queue")
        else:
            case.fault(f"db upgrade, by the owner of the schema: {last_line(ended.stderr)}")

        ended = case.run_command("db", "upgrade", environment=environment)
        said = ended.stderr.decode(errors="replace")
        if ended.returncode != 1 or "Traceback" in said or "schema" not in said:
            case.fault(f"db upgrade without CREATE on public: ended with {ended.returncode}: {last_line(said)}")


def grant_to_odd_names(case: Case) -> None:
    with ExitStack() as roles:
        urls = {kind: roles.enter_context(case.role(name=name)) for kind, name in ROLES.items()}
        options = [word for kind, name in ROLES.items() for word in (f"--{kind}", name)]
        statements = printed(case, "db", "roles", *options, "--schema", "queue")
        with case.postgres_database() as database:
            upgrade(database, schema="queue")
            with MQ(text_of(database), schema="queue") as mq:
                mq.create_topic("granted")
            if psql(case, "db roles", database, statements):
                case.attempt("db roles", lambda: use_rights(urls, database))


def use_rights(urls: dict[str, URL], database: URL) -> None:
    producer_url, consumer_url = (urls[kind].set(database=database.database) for kind in ("producer", "consumer"))
    with MQ(producer_url, schema="queue", create_topics=False) as mq:
        mq.producer("granted").produce(Message(b"x"))
    with (
        MQ(consumer_url, schema="queue", create_topics=False) as mq,
        mq.consumer("granted", "group") as consumer,
    ):
        consumer.poll(timeout=5)


def printed(case: Case, *arguments: str) -> str:
    """Return what `sqlmq` prints."""
    ended = case.run_command(*arguments)
    if ended.returncode != 0:
        case.fault(f"{' '.join(arguments)}: {last_line(ended.stderr)}")
    return ended.stdout.decode()


def psql(case: Case, what: str, database: URL, statements: str, *options: str) -> bool:
    """Run *statements* by psql. Return whether it succeeded."""
    target = text_of(database.set(drivername="postgresql"))
    ended = subprocess.run(
        ["psql", "-q", "-v", "ON_ERROR_STOP=1", *options, target],
        input=statements,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        case.fault(f"{what}: {ended.stderr}")
    return ended.returncode == 0


def use(case: Case, what: str, database: URL, schema: str | None = None) -> None:
    case.attempt(what, lambda: produce_and_consume(database, schema))


def produce_and_consume(database: URL, schema: str | None) -> None:
    with MQ(text_of(database), schema=schema) as mq:
        producer = mq.producer("printed")
        producer.produce(Message(b"x", key=b"k"))
        producer.produce_many([Message(b"y"), Message(b"z", key=b"z")])
        with mq.consumer("printed", "group") as consumer:
            for _ in range(3):
                consumer.consume(timeout=10)
        mq.admin.lag()
    with administrator(database).connect() as connection:
        migrate.check(connection, schema=schema)


if __name__ == "__main__":
    run(judge, only_on="postgresql")
