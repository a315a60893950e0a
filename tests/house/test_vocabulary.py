"""The vocabulary of the house: names and prose in the field's words. Each test lists all offenders at once."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "sqlmq"
MODULES = sorted(SOURCE.rglob("*.py"))
SUPPORT = sorted((ROOT / "tests" / "support").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (*MODULES, *SUPPORT)}

RETIRED_WORDS = """
Kept Keeper Sleeper Stock Span ReadAhead GoOn Arrival Contents Ownership Joining Survey GroupSeen MemberSeen ClaimSeen
Lookout Outlook News Mover Moved Maintainer Hearing Answers Patience Line Spare Autocommitting Turn Usage Closing
Translating Block Transactions Host Terms Parking Aside Handling Performer Plain Transacting Awaiting Tally Seat
Coalescer Submitted Routed Looking Vitals Unseen NotYet Standing Extent Sized Runtime Books Run Trimmed Taken
Wanted Limits tend heard expelled look_around nudge told locked_soon taking try_at_once ask hand_out lend lent recall
give_up give_up_dead is_in_hand in_hand in_hand_to shelf stocked survey put_right is_trusted regain_trust
trusted_until is_undisturbed marking marked_to suspect_to suspect_beyond part_with hand_back give_back
give_back_if_forgotten bequeath leave_to_successor has_successor dispossess pass_over pass_over_evicted let_go is_held
move_on alone patient stir may_rest is_patient look_soon is_deaf hears hurry ask_to_end attend_to come_after_rest
goes_first is_passing write_again stride look_after_workers give_notice look_at append_anywhere losing_parked
trying_since sized_to sized_bytes not_yet
"""
RETIRED = frozenset(RETIRED_WORDS.split())
"""Names of the old vocabulary. A word that also has a good use, such as *verdict*, is not here."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def defined_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and name of each class, function, parameter, variable and attribute that *tree* defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each comment and docstring of a module, line by line."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(TREES[path]):
        # A string on its own is a docstring, of an attribute too.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number, line in enumerate(node.value.value.splitlines()):
                yield node.lineno + number, line


# Offenders that are known and have still to go. The lists only shrink: each test asserts that its list is exact.
KNOWN_NAMES: set[str] = set()
KNOWN_CLASSES: set[str] = set()
KNOWN_PERSONS: set[str] = set()
KNOWN_MOODS: set[str] = set()


def test_retired_words_name_nothing() -> None:
    offenders = {
        f"{name_of(path)}: {name}": line
        for path in MODULES
        for line, name in defined_names(TREES[path])
        if name.strip("_") in RETIRED
    }

    assert {name: line for name, line in offenders.items() if name not in KNOWN_NAMES} == {}
    assert KNOWN_NAMES - set(offenders) == set()


def test_a_class_name_stands_in_one_module_only() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(name_of(path))
    offenders = {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}

    assert {name: paths for name, paths in offenders.items() if name not in KNOWN_CLASSES} == {}
    assert KNOWN_CLASSES - set(offenders) == set()


PERSONS = re.compile(r"\b(whoever|somebody|himself)\b", re.IGNORECASE)


def test_prose_speaks_of_programs_and_not_of_somebody() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    lines = {path: list(prose_of(path)) for path in TREES} | {
        path: list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1)) for path in pages
    }
    offenders = [
        (name_of(path), line, text.strip()) for path in lines for line, text in lines[path] if PERSONS.search(text)
    ]

    assert [one for one in offenders if one[0] not in KNOWN_PERSONS] == []
    assert KNOWN_PERSONS - {name for name, *_ in offenders} == set()


MOOD = re.compile(r"(Be|Have|Tell|Say|Give|Let)\b")


def test_a_docstring_begins_with_what_happens() -> None:
    offenders = [
        (name_of(path), getattr(node, "name", "module"), text)
        for path in TREES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if MOOD.match(text := (ast.get_docstring(node) or "").partition("\n")[0])
    ]

    assert [one for one in offenders if one[0] not in KNOWN_MOODS] == []
    assert KNOWN_MOODS - {name for name, *_ in offenders} == set()


MOST_MODULES = 9


def test_no_package_but_the_commands_has_more_than_nine_modules() -> None:
    folders = {path.parent for path in MODULES} - {SOURCE / "cli" / "commands"}
    counts = {
        name_of(folder): len([path for path in folder.glob("*.py") if path.stem not in {"__init__", "__main__"}])
        for folder in folders
    }

    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}
