"""What is published works where there is no checkout: the wheel, in an environment with nothing else in it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.house import pages
from tests.house.test_docs import PAGES, name, pages_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.conftest import DatabaseUnderTest

    Environments = Callable[[Iterable[str]], Path]

ROOT = Path(__file__).parent.parent.parent
INSTALL_SECONDS = 600.0
RUN_SECONDS = 300.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("wheel"),
    pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made of the checkout as it is."""
    directory = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], ROOT)
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environments(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environments:
    """Makes environments with the given packages alone, once for each choice, and returns their directories of programs.

    A package such as ``sqlmq[postgres]`` is the wheel, with these extras.
    """
    made: dict[frozenset[str], Path] = {}

    def with_packages(packages: Iterable[str]) -> Path:
        chosen = frozenset(packages)
        if chosen not in made:
            made[chosen] = make_environment(wheel, chosen, tmp_path_factory.mktemp("environment"))
        return made[chosen]

    return with_packages


def make_environment(wheel: Path, packages: Iterable[str], directory: Path) -> Path:
    # Another environment's pip can install into this one, which saves installing pip itself.
    has_pip = importlib.util.find_spec("pip") is not None
    venv.create(directory, with_pip=not has_pip)
    programs = directory / ("Scripts" if os.name == "nt" else "bin")
    pip: list[str | Path]
    pip = [sys.executable, "-m", "pip", "--python", directory] if has_pip else [programs / "python", "-m", "pip"]
    extras = [found[1] for package in packages if (found := re.fullmatch(r"sqlmq\[(.+)\]", package))]
    others = [package for package in packages if not re.match(r"sqlmq\b", package)]
    wanted = [f"{wheel}[{','.join(sorted(extras))}]" if extras else str(wheel), *others]
    run([*pip, "install", "--quiet", "--no-compile", *wanted], directory, timeout=INSTALL_SECONDS)
    return programs


@pytest.fixture
def environment(environments: Environments) -> Path:
    """The directory of programs of an environment in which the wheel is installed, without extras."""
    return environments(["sqlmq"])


def run(command: list[str | Path], where: Path, *, given: str = "", timeout: float = RUN_SECONDS) -> str:
    """Run *command* as somebody without a checkout would, and return what it wrote."""
    hidden = {"PYTHONPATH", "SQLMQ_URL", "SQLMQ_SCHEMA"}
    result = subprocess.run(
        command,
        cwd=where,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        input=given,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_holds_the_package_with_its_migrations_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    inside = {Path(name).parts[0] for name in names}
    migrations = {path.relative_to(ROOT / "migrations").as_posix() for path in (ROOT / "migrations").rglob("*.py")}
    migrations |= {path.relative_to(ROOT / "migrations").as_posix() for path in (ROOT / "migrations").rglob("*.sql")}
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "sqlmq").rglob("*.py")}
    assert {name for name in inside if not name.endswith(".dist-info")} == {"sqlmq"}
    assert {f"sqlmq/_migrations/{name}" for name in migrations} <= set(names)
    assert modules | {"sqlmq/py.typed"} <= set(names)
    assert [name for name in names if name.endswith((".pyc", ".db"))] == []


def test_the_wheel_carries_licence_and_readme(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        described = message_from_bytes(archive.read(metadata))
        licences = [name for name in archive.namelist() if "/licenses/" in name]

    assert described["Name"] == "sqlmq"
    assert described["License-Expression"] == "Apache-2.0"
    assert described.get_payload()
    assert licences


def test_the_published_extras_are_those_for_applications(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        described = message_from_bytes(archive.read(metadata))

    assert described.get_all("Provides-Extra") == ["aiosqlite", "asyncio", "opentelemetry", "postgres", "prometheus"]


def test_the_installed_library_comes_from_the_wheel_and_works(environment: Path, tmp_path: Path) -> None:
    script = """
import sqlmq
with sqlmq.MQ("sqlite:///queue.db") as mq:
    mq.producer("orders").produce(sqlmq.Message(b"42"))
    print(mq.consumer("orders", "billing").consume(timeout=10).value.decode(), sqlmq.__file__)
"""

    value, file = run([environment / "python", "-W", "error", "-c", script], tmp_path).split()

    assert value == "42"
    assert ROOT not in Path(file).parents


def test_the_installed_library_has_the_revisions_for_every_database(environment: Path, tmp_path: Path) -> None:
    script = "import sqlmq.migrate; print(sqlmq.migrate.sql('postgresql'), sqlmq.migrate.sql('sqlite'))"

    text = run([environment / "python", "-W", "error", "-c", script], tmp_path)

    assert "CREATE FUNCTION sqlmq_append" in text
    assert text.count("CREATE TABLE sqlmq_message") == 2


def test_without_the_driver_a_postgres_url_is_an_error_that_says_what_to_install(
    environment: Path, tmp_path: Path
) -> None:
    script = """
import sqlmq
try:
    sqlmq.MQ("postgresql://user:secret@localhost/orders")
except sqlmq.errors.InvalidURLError as error:
    print(error)
"""

    said = run([environment / "python", "-W", "error", "-c", script], tmp_path)

    assert "pip install 'sqlmq[postgres]'" in said
    assert "secret" not in said


def test_the_installed_command_produces_and_consumes(environment: Path, tmp_path: Path) -> None:
    sqlmq = environment / "sqlmq"

    run([sqlmq, "produce", "greetings"], tmp_path, given="hello\nworld\n")
    got = run([sqlmq, "consume", "greetings", "--group", "readers", "--timeout", "1"], tmp_path)

    assert sorted(got.split()) == ["hello", "world"]
    assert (tmp_path / "sqlmq.db").exists()


def test_the_installed_demo_loses_nothing(environment: Path, tmp_path: Path) -> None:
    shown = run([environment / "sqlmq", "demo"], tmp_path)

    assert shown
    assert list(tmp_path.iterdir()) == []


# --- Pages, with only what they install ---


def packages_for(page: Path) -> set[str]:
    """Return what *page* installs; if it says nothing of that, what the README does, which comes before."""
    return pages.installed_by(page) or pages.installed_by(ROOT / "README.md")


@pages_with(postgres=False)
def test_the_code_of_a_page_needs_only_what_the_page_installs(
    page: Path, environments: Environments, tmp_path: Path
) -> None:
    python = environments(packages_for(page)) / "python"

    run([python, "-W", "error", pages.__file__, page], tmp_path)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pages_with(postgres=True)
def test_the_code_of_a_page_on_postgres_needs_only_what_the_page_installs(
    page: Path, environments: Environments, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    python = environments(packages_for(page)) / "python"

    run([python, "-W", "error", pages.__file__, page, database.url], tmp_path)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "`pip install sqlmq`" in page.read_text(encoding="utf-8")], ids=name
)
def test_a_page_that_needs_no_extra_on_sqlite_runs_without_one(page: Path, environment: Path, tmp_path: Path) -> None:
    run([environment / "python", "-W", "error", pages.__file__, page], tmp_path)


# --- Without an extra, an error names it ---


@pytest.mark.parametrize(
    ("extra", "statement"),
    [
        ("opentelemetry", "import sqlmq.opentelemetry"),
        ("prometheus", "import sqlmq.prometheus"),
        ("asyncio", "asyncio.run(use(lambda producer, consumer: producer.produce(Message(b'1'), session=object())))"),
        ("asyncio", "asyncio.run(use(lambda producer, consumer: consumer.run(handle, transaction=True)))"),
        ("asyncio", "asyncio.run(use(lambda producer, consumer: consumer.transaction().__aenter__()))"),
    ],
)
def test_without_an_extra_the_error_names_it(environment: Path, tmp_path: Path, extra: str, statement: str) -> None:
    script = f"""
import asyncio
from sqlmq import AsyncMQ, Message
from sqlmq.errors import MissingDependencyError

async def handle(message, session):
    pass

async def use(call):
    async with AsyncMQ("sqlite:///queue.db") as mq:
        await call(await mq.producer("orders"), await mq.consumer("orders", "billing"))

try:
    {statement}
except MissingDependencyError as error:
    assert isinstance(error, ImportError)
    print(error.extra, error)
"""

    said = run([environment / "python", "-W", "error", "-c", script], tmp_path)

    assert said.startswith(f"{extra} ")
    assert f"pip install 'sqlmq[{extra}]'" in said


def test_with_greenlet_alone_a_transaction_on_sqlite_names_the_extra_with_the_driver(
    environments: Environments, tmp_path: Path
) -> None:
    script = """
import asyncio
from sqlmq import AsyncMQ, errors

async def use():
    async with AsyncMQ("sqlite:///queue.db") as mq:
        async with (await mq.consumer("orders", "billing")).transaction():
            pass

try:
    asyncio.run(use())
except errors.MissingDependencyError as error:
    print(error)
"""
    python = environments(["sqlmq[asyncio]"]) / "python"

    said = run([python, "-W", "error", "-c", script], tmp_path)

    assert "pip install 'sqlmq[aiosqlite]'" in said


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_verify_runs_without_the_libraries_for_asyncio(
    environments: Environments, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    programs = environments(["sqlmq[postgres]"])
    # The third member would read in transactions in an event loop, if it could.
    options = ["--mode", "transaction", "--consumers", "3", "--duration", "4", "--faults", "none", "--out", "found"]

    result = subprocess.run(
        [programs / "sqlmq", "verify", "run", "--url", database.url, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )

    # On a busy machine too few messages are sent in these seconds for a verdict, which is 3.
    assert result.returncode in {0, 3}, result.stdout + result.stderr
    assert "unexpected error" not in result.stderr
