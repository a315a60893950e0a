from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection, text

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest

FLIGHTS = Path(__file__).parent.parent.parent / "examples" / "flights.py"

# The tables are in the connection's default schema.
DATABASES = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def csv_path(tmp_path: Path) -> Path:
    """5,000 made-up flights of 70 planes, every eleventh without one."""
    path = tmp_path / "flights.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["year", "carrier", "flight", "tailnum", "dest"])
        for row in range(5_000):
            plane = "NA" if row % 11 == 0 else f"N{row * 31 % 70:03}"
            writer.writerow([2013, "UA", row % 900, plane, "Zürich, ZRH"])
    return path


def fly(*arguments: object) -> subprocess.CompletedProcess[str]:
    # As on a machine without network: what is not given may not be looked for.
    return subprocess.run(
        [sys.executable, FLIGHTS, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )


@DATABASES
def test_every_group_gets_every_flight_in_the_order_of_its_plane(database: DatabaseUnderTest, csv_path: Path) -> None:
    result = fly("--csv", csv_path, "--url", database.url)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "5,000 flights of 70 planes, 455 without a plane" in result.stdout
    assert result.stdout.count("5,000 of 5,000 records, 0 out of order") == 2
    assert result.stdout.endswith("every group got every record, each plane's in order\n")


@DATABASES
def test_a_run_leaves_nothing_in_the_database(
    database: DatabaseUnderTest, connection: Connection, csv_path: Path
) -> None:
    result = fly("--csv", csv_path, "--url", database.url, "--records", 500)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "500 flights" in result.stdout
    assert connection.execute(text("SELECT count(*) FROM sqlmq_message")).scalar_one() == 0
    assert connection.execute(text("SELECT count(*) FROM sqlmq_topic")).scalar_one() == 0


def test_a_check_that_fails_ends_with_exit_code_1(csv_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    source = FLIGHTS.read_text(encoding="utf-8")
    # Every message without a key: the planes' flights are scattered over the partitions.
    keyless = source.replace("None if flight.plane is None else flight.plane.encode()", "None")
    assert keyless != source
    broken.write_text(keyless.replace("CHUNK = 1_000", "CHUNK = 10"), encoding="utf-8")

    result = subprocess.run(
        [sys.executable, broken, "--csv", csv_path, "--records", "3000"],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )

    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED" in result.stdout


def test_a_file_that_is_not_about_flights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")

    result = fly("--csv", path)

    assert result.returncode == 1
    assert "no column 'tailnum'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_gives_up_when_its_time_is_over(csv_path: Path) -> None:
    result = fly("--csv", csv_path, "--timeout", 0)

    assert result.returncode == 1
    assert "it took too long" in result.stderr
