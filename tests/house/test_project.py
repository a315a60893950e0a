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

ROOT = Path(__file__).parent.parent.parent


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def requirements() -> list[str]:
    described = project()
    extras: dict[str, list[str]] = described["optional-dependencies"]
    every = [*described["dependencies"], *(one for extra in extras.values() for one in extra)]
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
    for command in ("demo", "test", "check", "bench", "references"):
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
