"""What the documentation says, runs: code blocks (`pages`), commands, links, and the reference."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import sqlmq
from sqlmq import (
    MQ,
    Admin,
    AsyncAdmin,
    AsyncConsumer,
    AsyncMQ,
    AsyncParked,
    AsyncProducer,
    Consumer,
    Parked,
    Producer,
)
from tests.house.pages import Block, blocks, run_page, runnable

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIRST_PAGES = ("README.md", "quickstart.md")
LINKING_PAGES = sorted({*PAGES, *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("*/README.md")})


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(*, postgres: bool) -> pytest.MarkDecorator:
    """Parametrize with the pages that have such code. In the quick lane, those that a new user opens first."""
    found = [page for page in PAGES if runnable(page, postgres=postgres)]
    marked = [pytest.param(page, marks=[] if page.name in FIRST_PAGES else pytest.mark.slow) for page in found]
    return pytest.mark.parametrize("page", marked, ids=name)


# --- Code runs ---


@pages_with(postgres=False)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    run_page(page, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pages_with(postgres=True)
def test_the_code_of_a_page_runs_on_postgres(page: Path, database: DatabaseUnderTest, tmp_path: Path) -> None:
    run_page(page, tmp_path, database.url)


def is_known(block: Block) -> bool:
    """Return whether the words of *block* are ones that its language has; SQL that is not run is not known."""
    known = {"python": {"postgres"}, "sql": {"postgres", "fails"}, "sh": {"sqlite", "postgres"}}
    words = {word for word in block.words if not re.fullmatch(r"[0-9A-Z]{5}", word)}
    return words <= known.get(block.language, set()) and (block.language != "sql" or block.is_for_postgres)


def test_every_block_says_what_it_is() -> None:
    assert [
        f"{name(page)}:{block.line}: {block.language} {block.words}"
        for page in PAGES
        for block in blocks(page)
        if not is_known(block)
    ] == []


# --- Commands exist ---


def commands_in(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(sqlmq [^`]+)`", prose)
    parts = [part.strip() for line in lines for part in re.split(r"\||&&|;", line)]
    return [part for part in parts if part.startswith("sqlmq ")]


def check_command(words: list[str]) -> None:
    """Walk from the command `sqlmq` down *words*; fail at a command or option that is not there."""
    from sqlmq.cli.root import main

    command: click.Command = main
    options = {name: option for option in main.params for name in option.opts}
    remaining = iter(words)
    for word in remaining:
        if word.startswith("-"):
            option_name, _, value = word.partition("=")
            assert option_name in {*options, "--help", "-h"}, f"{command.name} has no option {option_name}"
            option = options.get(option_name)
            if isinstance(option, click.Option) and not option.is_flag and not option.count and not value:
                next(remaining)
        elif isinstance(command, click.Group):
            assert word in command.commands, f"there is no command {word}"
            command = command.commands[word]
            options |= {name: option for option in command.params for name in option.opts}


def test_every_command_of_a_page_exists() -> None:
    wrong = []
    for page in [*PAGES, ROOT / "docs" / "reference" / "cli.md"]:
        for command in commands_in(page):
            try:
                check_command(shlex.split(command, comments=True)[1:])
            except AssertionError as error:
                wrong.append(f"{name(page)}: {command}: {error}")

    assert wrong == []


# --- Links lead somewhere ---


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """The targets of the links of *page* that lead to files of the project."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    goal = page.parent / path if path else page
    return goal.exists() and (not anchor or anchor in anchors(goal))


def test_every_link_inside_the_project_leads_somewhere() -> None:
    broken = [
        f"{name(page)}: {target}"
        for page in LINKING_PAGES
        for target in links(page)
        if not leads_somewhere(page, target)
    ]

    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.name for page in PAGES if page.parent.name == "docs" and page.name != "index.md"]

    assert [page for page in pages if f"({page})" not in index] == []


# --- Nothing is left out ---


def test_the_readme_opens_with_the_two_commands() -> None:
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line]
    fence = lines.index("```sh")
    opening = " ".join(lines[1:fence])

    assert lines[0] == "# sqlmq"
    assert opening.count(". ") == 0, "one sentence comes first"
    assert opening.endswith(".")
    assert [line.partition("#")[0].strip() for line in lines[fence + 1 : fence + 3]] == [
        "python3 dev.py demo",
        "python3 dev.py test",
    ]


def test_the_methods_for_asyncio_take_what_the_others_take() -> None:
    def parameters(cls: type) -> dict[str, list[tuple[str, object]]]:
        return {
            name: [(one.name, one.default) for one in inspect.signature(member).parameters.values()]
            for name, member in vars(cls).items()
            if not name.startswith("_") and inspect.isfunction(member)
        }

    pairs = [
        (AsyncMQ, MQ),
        (AsyncAdmin, Admin),
        (AsyncProducer, Producer),
        (AsyncConsumer, Consumer),
        (AsyncParked, Parked),
    ]

    assert [parameters(aio) for aio, _ in pairs] == [parameters(sync) for _, sync in pairs]


def test_the_functions_on_the_architectures_walks_exist() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "sqlmq").rglob("*.py"))
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = re.findall(r"^## A message [^\n]+\n\n```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    functions = {word.rsplit(".", 1)[1] for walk in walks for word in re.findall(r"\b[a-zA-Z]\w*(?:\.\w+)+", walk)}

    assert len(walks) == 2
    assert {function for function in functions if f"def {function}(" not in source} == set()


def test_every_error_stands_in_the_troubleshooting() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    errors = [name for name, found in vars(sqlmq.errors).items() if inspect.isclass(found)]

    assert errors
    assert [name for name in errors if f"`{name}`" not in page] == []
