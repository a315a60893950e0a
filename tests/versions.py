"""Test the supported ranges: contract tests with the oldest and newest releases, ``python3 dev.py versions``.

``lowest`` has the oldest supported Python on this machine, and every direct dependency at its lower bound; ``newest``
the newest Python, and the newest releases that pyproject.toml allows; ``pythons`` every supported Python, with those.
Each has an environment in ``.venvs``. Like dev.py, this needs nothing but Python.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

from dev import PROJECT, ROOT, make_venv, pip_install, python_of, requirements, run

VENVS = ROOT / ".venvs"
GROUP = "contract"
JOBS = ("lowest", "newest", "pythons")

# What dependencies do for the library: statements, transactions, drivers, migrations, the command, telemetry.
TESTS = (
    "tests/contract/test_consume.py",
    "tests/contract/test_delayed.py",
    "tests/contract/test_outbox.py",
    "tests/contract/test_parked.py",
    "tests/contract/test_produce.py",
    "tests/contract/test_run.py",
    "tests/contract/test_telemetry.py",
    "tests/contract/test_topics.py",
    "tests/contract/test_transaction.py",
    "tests/databases/test_connecting.py",
    "tests/migrations",
    "tests/cli/test_help.py",
    "tests/cli/test_metrics.py",
    "tests/cli/test_produce_and_consume.py",
    "tests/cli/test_topics_and_groups.py",
)


class Environment(NamedTuple):
    """An environment to test in: its name, its interpreter, and whether dependencies have their lower bounds."""

    name: str
    python: str
    is_lowest: bool = False


def main(arguments: list[str]) -> int:
    """Run the jobs that are named, or all; return 0 when all passed."""
    parser = argparse.ArgumentParser(prog="dev.py versions", description="Test the supported ranges of versions.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(JOBS)} (default: all)")
    jobs: list[str] = parser.parse_args(arguments).jobs or list(JOBS)
    if unknown := set(jobs).difference(JOBS):
        parser.error(f"there is no job {min(unknown)!r}, only {', '.join(JOBS)}")
    pythons = find_pythons()
    if not pythons:
        parser.error("no Python that pyproject.toml names as supported is on this machine")
    chosen = environments(jobs, pythons)
    results = {one.name: test_in(one) for one in chosen}
    print("\ndev.py: tested with:", *(f"  {name:<18} {result}" for name, result in results.items()), sep="\n")
    return 0 if set(results.values()) == {"passed"} else 1


def environments(jobs: list[str], pythons: dict[str, str]) -> list[Environment]:
    """Return what the *jobs* test in, each once. *pythons* are the interpreters of this machine, oldest first."""
    (oldest, *_), (*_, newest) = pythons, pythons
    wanted = set(pythons) if "pythons" in jobs else {newest} if "newest" in jobs else set()
    lowest = [Environment(f"lowest-{oldest}", pythons[oldest], is_lowest=True)] if "lowest" in jobs else []
    return lowest + [Environment(f"newest-{one}", python) for one, python in pythons.items() if one in wanted]


def find_pythons() -> dict[str, str]:
    """Return the supported Pythons of this machine: version and interpreter, oldest first; pyenv's, if not on PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = {}
    for minor in supported_minors():
        named = [Path(directory) / f"python3.{minor}" for directory in os.get_exec_path()]
        named += sorted(pyenv.glob(f"versions/3.{minor}*/bin/python3.{minor}"), reverse=True)
        if minor == sys.version_info.minor:
            named.insert(0, Path(sys.executable))
        for candidate in named:
            if version := version_of(candidate):
                found[version] = str(candidate)
                break
    return found


def supported_minors() -> list[int]:
    """Return the 11 of Python 3.11, and so on, as the classifiers of the project name them."""
    classifiers = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["classifiers"]
    return sorted(int(one.rpartition(".")[2]) for one in classifiers if re.fullmatch(r".*:: Python :: 3\.\d+", one))


def version_of(python: Path) -> str | None:
    """Return the version of *python*; None if it does not run, as pyenv's commands for versions that are switched off."""
    if not python.exists():
        return None
    code = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def test_in(environment: Environment) -> str:
    """Install and test in *environment*, and return the result in a word or two."""
    print(f"\n== {environment.name}", flush=True)
    directory = VENVS / environment.name
    make_venv(directory, environment.python)
    python = python_of(directory)
    options: list[str | Path] = ["--upgrade"]
    if environment.is_lowest:
        pins = directory / "pins.txt"
        pins.write_text("\n".join(lower_bounds()) + "\n", encoding="utf-8")
        options = ["--constraint", pins]
    if pip_install(python, GROUP, *options) != 0:
        return "installation failed"
    run(python, "-c", _SHOW, *(name for name, _ in map(bound_of, direct_requirements())))
    began = time.monotonic()
    code = run(python, "-m", "pytest", "--lane", "quick", "-q", *TESTS)
    print(f"{environment.name}: {time.monotonic() - began:.0f} s")
    return "passed" if code == 0 else "failed"


def direct_requirements() -> list[str]:
    """Return what sqlmq and the group of the tests require themselves."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras, packages = requirements(GROUP)
    optional = [one for extra in sorted(extras) for one in project["optional-dependencies"][extra]]
    return [one for one in [*project["dependencies"], *optional, *packages] if not one.startswith("sqlmq[")]


def lower_bounds() -> list[str]:
    """Return a constraint for each direct requirement that pins it to its lower bound."""
    return [f"{name}=={version}" for name, version in map(bound_of, direct_requirements())]


def bound_of(requirement: str) -> tuple[str, str]:
    """Return the name in *requirement*, and the version that it begins with."""
    found = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=([^,;]+)", requirement)
    if found is None:
        raise ValueError(f"{requirement} has no lower bound")
    return found[1], found[2].strip()


_SHOW = """
import sys
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in dict.fromkeys(sys.argv[1:])), sep=", ")
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
