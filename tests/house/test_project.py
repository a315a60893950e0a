"""What holds for the checkout as a whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import dev
from tests import versions

ROOT = Path(__file__).parent.parent.parent


def project_file() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project() -> dict[str, Any]:
    table: dict[str, Any] = project_file()["project"]
    return table


def requirements() -> list[str]:
    described = project()
    named = [described["dependencies"], *described["optional-dependencies"].values()]
    named += project_file()["dependency-groups"].values()
    every = [one for some in named for one in some if isinstance(one, str)]
    return [one for one in every if not one.startswith("sqlmq[")]


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    found = requirements()

    assert found
    assert [one for one in found if not re.search(r">=\d", one) or not re.search(r"<\d", one)] == []


def test_the_changelog_has_a_section_for_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert f"\n## [{project()['version']}]" in changelog


def test_the_version_in_the_package_is_the_one_in_the_project_file() -> None:
    import sqlmq

    assert sqlmq.__version__ == project()["version"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "sqlmq" / "py.typed").exists()


@pytest.mark.skipif(os.name == "nt", reason="files have no execute permission there")
def test_the_ci_script_can_be_executed() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_ci_script_ends_with_the_tests_so_that_their_summary_is_its_last_line() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()

    assert "set -euo pipefail" in lines
    assert lines[-1] == '"$python" dev.py test --all'


def test_the_development_script_explains_itself_without_an_environment() -> None:
    # -S and -I: no site-packages, as on a machine where nothing is installed.
    result = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "dev.py"], capture_output=True, text=True, check=False, timeout=30
    )

    assert result.returncode == 0
    for command in ("demo", "test", "check", "versions", "bench", "references"):
        assert f"\n    {command} " in result.stdout


def test_the_development_database_is_reachable_from_this_machine_only() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")

    ports = re.findall(r'^ +- "?([\d.:]+)"?$', compose, re.MULTILINE)
    assert ports == ["127.0.0.1:5432:5432"]


def test_every_marker_is_explained_in_the_readme_of_the_tests() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    markers = [marker.partition(":")[0] for marker in table["tool"]["pytest"]["ini_options"]["markers"]]
    readme = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")

    assert [marker for marker in markers if f"`{marker}`" not in readme] == []


def test_every_command_of_the_development_script_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")]
    named = {
        (page.relative_to(ROOT).as_posix(), command)
        for page in pages
        for command in re.findall(r"dev\.py ([a-z]+)", page.read_text(encoding="utf-8"))
    }

    assert named
    assert [one for one in sorted(named) if one[1] not in dev.COMMANDS] == []


def test_a_group_has_the_extras_and_packages_of_the_groups_in_it() -> None:
    extras, packages = dev.requirements("dev")

    assert extras >= {"asyncio", "postgres"}
    assert {re.split(r"[<>=\[]", one)[0] for one in packages} >= {"ruff", "django", "pytest"}
    assert [one for one in packages if "sqlmq" in one] == []


def test_the_lowest_versions_pin_every_direct_requirement_to_its_lower_bound() -> None:
    pins = versions.lower_bounds()

    assert "sqlalchemy==2.0.43" in pins
    assert {pin.partition("==")[0] for pin in pins} >= {"click", "psycopg", "aiosqlite", "pytest"}
    assert len(pins) == len(versions.direct_requirements())


PYTHONS = {"3.11.7": "/old", "3.12.1": "/middle", "3.13.0": "/new"}


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        (["lowest"], [("lowest-3.11.7", "/old", True)]),
        (["newest"], [("newest-3.13.0", "/new", False)]),
        (
            ["newest", "pythons"],
            [("newest-3.11.7", "/old", False), ("newest-3.12.1", "/middle", False), ("newest-3.13.0", "/new", False)],
        ),
    ],
)
def test_each_job_tests_with_the_pythons_that_it_names_and_each_of_them_once(
    jobs: list[str], expected: list[tuple[str, str, bool]]
) -> None:
    assert versions.environments(jobs, PYTHONS) == expected


def test_the_running_python_is_found() -> None:
    assert ".".join(map(str, sys.version_info[:3])) in versions.find_pythons()
