#!/usr/bin/env python3
"""One command for everything: `python3 dev.py demo`, `test`, `check`, `versions`, `soak`, `bench` or `references`.

Needs Python 3.11 and nothing else. It makes `.venv` beside this file, installs into it when `pyproject.toml` has
changed, and runs the command there; what follows the command is passed on, as in `python3 dev.py test -k outbox`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PROJECT = ROOT / "pyproject.toml"
VENV = ROOT / ".venv"
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "sqlmq-installed"

COMMANDS = {
    "demo": "show a queue at work, on SQLite in a temporary directory",
    "test": "run the quick lane of the tests; all of them with --all; those in PATH ...; with pytest's options",
    "check": "run ruff, mypy and import-linter",
    "versions": "run contract tests with the lowest or newest releases, or with all pythons on this machine",
    "soak": "produce and consume under more and more faults for --minutes, and judge it; on SQLite, or at --url",
    "selftest": "test the judge of `sqlmq verify` with wrong histories; with --mutations, with a broken library",
    "bench": "run the benchmarks",
    "references": "write docs/reference anew, from the code",
}
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)

QUICK_LANE = "each test without faults, on SQLite and Postgres, synchronous and asyncio; about 5 minutes on two cores."
ALL_LANE = "the whole matrix, crashes, faults, schedules, examples; about 20 minutes on two cores."

# Faults, producers, and members of each group. A soak runs one mix after the other.
MIXES = (
    ("none", "2", "1"),
    ("kill", "2", "2"),
    ("kill,pause", "3", "2"),
    ("kill,pause,end,terminate", "3", "3"),
)


def run(*command: str | Path) -> int:
    """Run *command* at the top of the checkout and return its exit code."""
    sys.stdout.flush()
    try:
        return subprocess.run([str(word) for word in command], cwd=ROOT, check=False).returncode
    except KeyboardInterrupt:
        return 130


def python_of(venv: Path) -> Path:
    """Return the interpreter of the environment *venv*."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


PYTHON = python_of(VENV)


def make_venv(venv: Path = VENV, python: str = sys.executable) -> None:
    """Make the environment *venv*, anew if the one that is there does not run."""
    if python_of(venv).exists() and run(python_of(venv), "-c", "import sys; sys.exit(sys.version_info < (3, 11))") == 0:
        return
    if venv.exists():
        print(f"dev.py: {venv.name} does not work; making it anew")
        shutil.rmtree(venv)
    if shutil.which("uv"):
        if run("uv", "venv", "--quiet", "--python", python, venv) != 0:
            sys.exit("dev.py: `uv venv` failed, see above")
        return
    if run(python, "-m", "venv", venv) != 0:
        shutil.rmtree(venv, ignore_errors=True)
        sys.exit(
            "dev.py: this Python cannot make a virtual environment (see above). On Debian and Ubuntu that is a package "
            f"of its own: `sudo apt install python3.{sys.version_info.minor}-venv`. Or install uv."
        )


def requirements(group: str) -> tuple[set[str], list[str]]:
    """Return the extras of sqlmq, and the packages, in a dependency group of pyproject.toml and the groups in it."""
    import tomllib  # Python 3.11 brings it, and an older one has to get as far as the message in `main`

    extras: set[str] = set()
    packages: list[str] = []
    for entry in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["dependency-groups"][group]:
        if isinstance(entry, dict):
            more_extras, more_packages = requirements(entry["include-group"])
            extras |= more_extras
            packages += more_packages
        elif found := re.fullmatch(r"sqlmq\[(.+)\]", entry):
            extras |= {extra.strip() for extra in found[1].split(",")}
        else:
            packages.append(entry)
    return extras, packages


def install(group: str | None) -> None:
    """Install the checkout with a dependency *group*, or alone, unless `.venv` has that already."""
    python = subprocess.run([PYTHON, "-VV"], capture_output=True, check=True).stdout
    facts = PROJECT.read_bytes() + python + str(ROOT).encode()
    fingerprint = hashlib.sha256(facts).hexdigest()
    installed = STAMP.read_text(encoding="utf-8").split() if STAMP.exists() else []
    if installed in ([fingerprint, "dev"], [fingerprint, group or "-"]):
        return
    print("dev.py: installing into .venv, once ...")
    STAMP.unlink(missing_ok=True)
    if pip_install(PYTHON, group) != 0:
        sys.exit("dev.py: the installation failed, see above")
    STAMP.write_text(f"{fingerprint} {group or '-'}\n", encoding="utf-8")


def pip_install(python: Path, group: str | None, *options: str | Path) -> int:
    """Install the checkout, editable, with a dependency *group* for *python*, and return pip's exit code."""
    extras, packages = requirements(group) if group else (set(), [])
    checkout = f".[{','.join(sorted(extras))}]" if extras else "."
    has_pip = run(python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('pip') is None)") == 0
    pip: tuple[str | Path, ...] = (python, "-m", "pip") if has_pip else ("uv", "pip")
    into: tuple[str | Path, ...] = () if has_pip else ("--python", python)
    return run(*pip, "install", *into, "--quiet", *options, "--editable", checkout, *packages)


def install_peers() -> None:
    """Install the queues that ours is measured against, as far as they can be had; tried once."""
    stamp = VENV / "sqlmq-bench-installed"
    fingerprint = STAMP.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == fingerprint:
        return
    if pip_install(PYTHON, "bench") != 0:
        print("dev.py: not all peers could be installed, see above; the benchmarks go on without them")
    stamp.write_text(fingerprint, encoding="utf-8")


def check() -> int:
    """Run every check, also after one has failed; return 0 when all passed."""
    failed = []
    for name, *arguments in CHECKS:
        title = " ".join([name, *arguments])
        print(f"\n== {title}")
        if run(SCRIPTS / name, *arguments) != 0:
            failed.append(title)
    print(f"\ndev.py: failed: {', '.join(failed)}" if failed else "\ndev.py: all checks passed")
    return 1 if failed else 0


def test(arguments: list[str]) -> int:
    """Run a lane of the tests, or the paths in *arguments*; say which tests that are. Pytest prints the last line."""
    rest = [argument for argument in arguments if argument != "--all"]
    if rest != arguments:
        print(f"dev.py: all tests: {ALL_LANE}")
        return run(PYTHON, "-m", "pytest", "--lane", "all", *rest)
    if any(Path(argument.partition("::")[0]).exists() for argument in rest):
        return run(PYTHON, "-m", "pytest", *rest)
    print(f"dev.py: the quick lane: {QUICK_LANE}\ndev.py: the rest:       python3 dev.py test --all: {ALL_LANE}")
    return run(PYTHON, "-m", "pytest", "--lane", "quick", *rest)


def soak(arguments: list[str]) -> int:
    """Run `sqlmq verify run` with each mix; return 0 if all are valid. Histories and reports stay in `soak/`."""
    parser = argparse.ArgumentParser(prog="dev.py soak")
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long all of it takes (default: 10)")
    parser.add_argument("--url", help="the database (default: SQLite files beside the histories)")
    parser.add_argument("--rate", default="300", help="the most messages that are sent in a second (default: 300)")
    parser.add_argument("--every", default="1", help="average seconds from one fault to the next (default: 1)")
    options = parser.parse_args(arguments)
    os.environ.pop("SQLMQ_URL", None)
    if options.url:
        # All users can see command lines, and a URL contains a password.
        os.environ["SQLMQ_URL"] = options.url
    directory = ROOT / "soak" / time.strftime("%Y%m%d-%H%M%S")
    seconds = max(1.0, options.minutes * 60 / len(MIXES))
    failed = []
    for number, (faults, producers, consumers) in enumerate(MIXES, 1):
        print(f"\n== {number} of {len(MIXES)}: {seconds:.0f} seconds, faults: {faults}")
        out = directory / f"{number}-{faults.replace(',', '-')}"
        mix = ("--faults", faults, "--producers", producers, "--consumers", consumers)
        pace = ("--duration", f"{seconds:.0f}", "--rate", options.rate, "--every", options.every)
        if run(SCRIPTS / "sqlmq", "verify", "run", *pace, *mix, "--out", out) != 0:
            failed.append(out)
    print("\ndev.py: not valid:" if failed else f"\ndev.py: all valid; reports are in {directory}", *failed)
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """Prepare `.venv`, run the command, return its exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python gets this message instead of a traceback
        sys.exit("dev.py: Python 3.11 or newer is needed, this is " + sys.version.split()[0])
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(__doc__, *(f"    {name:<10}  {explanation}" for name, explanation in COMMANDS.items()), sep="\n")
        return 0
    command, *passed_on = arguments
    if command not in COMMANDS:
        sys.exit(f"dev.py: there is no command {command!r}, only {', '.join(COMMANDS)}")
    if command == "bench" and not (ROOT / "benchmarks" / "__main__.py").exists():
        sys.exit("dev.py: this checkout has no benchmarks/__main__.py to run")
    if command == "versions":
        # It makes environments of its own, and needs nothing installed.
        return run(sys.executable, "-m", "tests.versions", *passed_on)
    make_venv()
    install(None if command == "demo" else "dev")
    if command == "demo":
        return run(SCRIPTS / "sqlmq", "demo", *passed_on)
    if command == "test":
        return test(passed_on)
    if command == "soak":
        return soak(passed_on)
    if command == "selftest":
        return run(PYTHON, "-m", "tests.verify.selftest", *passed_on)
    if command == "bench":
        install_peers()
        return run(PYTHON, "-m", "benchmarks", *passed_on)
    if command == "references":
        return run(PYTHON, "-m", "docs.reference")
    return check()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
