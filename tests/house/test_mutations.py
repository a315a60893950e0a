"""What holds for the table of mutations, so that it does not rot while the library changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lanes import SLOW_FOLDERS
from tests.mutations.mutation import Edit
from tests.mutations.table import MUTATIONS
from tests.verify.selftest import mutations as selftest

ROOT = Path(__file__).parent.parent.parent


def test_each_edit_of_a_mutation_replaces_text_that_stands_once_in_its_file_and_leaves_a_program() -> None:
    offenders = []
    for mutation in MUTATIONS.values():
        texts: dict[str, str] = {}
        for edit in mutation.edits:
            text = texts.get(edit.file) or (ROOT / edit.file).read_text(encoding="utf-8")
            try:
                texts[edit.file] = edit.applied_to(text)
            except ValueError as error:
                offenders.append(f"{mutation.name}: {error}")
        for file, text in texts.items():
            try:
                if file.endswith(".py"):
                    compile(text, file, "exec")
            except SyntaxError as error:
                offenders.append(f"{mutation.name}: {error}")

    assert offenders == []


def test_the_tests_that_most_likely_notice_a_mutation_exist() -> None:
    missing = []
    for mutation in MUTATIONS.values():
        for likely in mutation.likely:
            file, _, name = likely.partition("::")
            path = ROOT / file
            if not path.is_file() or (name and f"def {name}(" not in path.read_text(encoding="utf-8")):
                missing.append(f"{mutation.name}: {likely}")

    assert missing == []


def test_each_mutation_has_a_name_of_its_own_and_changes_something() -> None:
    from tests.mutations import groups, handling, log, outbox, trimming

    tables = (log, outbox, groups, handling, trimming)
    names = [one.name for module in tables for one in module.MUTATIONS]

    assert len(names) == len(set(names)) == len(MUTATIONS)
    assert [name for name, one in MUTATIONS.items() if all(edit.old == edit.new for edit in one.edits)] == []


def test_what_verify_must_find_the_tests_must_find_too() -> None:
    renamed = {"numbered-without-lock", "number-left-out", "fence-ignored"}
    missing = set(selftest.MUTATIONS) - set(MUTATIONS) - renamed

    assert missing == set()


def test_the_mutations_and_tests_that_the_page_names_exist_and_the_quick_lane_has_them() -> None:
    page = (ROOT / "docs" / "design" / "testing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\| `([a-z_/]+\.py)::(\w+)`", page, re.MULTILINE)

    unknown = [name for name, _, _ in rows if name not in MUTATIONS]
    missing = [
        f"{file}::{test}"
        for _, file, test in rows
        if not (path := ROOT / "tests" / file).is_file() or f"def {test}(" not in path.read_text(encoding="utf-8")
    ]

    late = [name for name, file, _ in rows if Path(file).parent.name in SLOW_FOLDERS]

    assert len(rows) > 50
    assert (unknown, missing, late) == ([], [], [])


def test_an_edit_whose_text_does_not_stand_once_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"notes\.txt has the text 2 times, not once"):
        Edit("notes.txt", "a", "b").applied_to("a cat")
