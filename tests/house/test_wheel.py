"""What is published works where there is no checkout: the wheel, in an environment with nothing else in it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
INSTALL_SECONDS = 240.0
RUN_SECONDS = 90.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("wheel"),
    pytest.mark.timeout(INSTALL_SECONDS + 60),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made of the checkout as it is."""
    directory = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], ROOT)
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of programs of an environment in which the wheel is installed, without extras."""
    directory = tmp_path_factory.mktemp("environment")
    # Another environment's pip can install into this one, which saves installing pip itself.
    has_pip = importlib.util.find_spec("pip") is not None
    venv.create(directory, with_pip=not has_pip)
    programs = directory / ("Scripts" if os.name == "nt" else "bin")
    pip: list[str | Path]
    pip = [sys.executable, "-m", "pip", "--python", directory] if has_pip else [programs / "python", "-m", "pip"]
    run([*pip, "install", "--quiet", "--no-compile", wheel], directory, timeout=INSTALL_SECONDS)
    return programs


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
