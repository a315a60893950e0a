"""A mutation of the library: exact replacements in its source files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STORE, OPERATIONS = "src/sqlmq/store", "src/sqlmq/operations"
POSTGRES, SQLITE = "src/sqlmq/dialects/postgresql", "src/sqlmq/dialects/sqlite"
SQL = "migrations/sql/postgresql"


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement in a source file."""

    file: str
    """The path of the file, from the top of the checkout."""
    old: str
    """The text to replace. It stands once in the file."""
    new: str

    def apply(self, checkout: Path) -> None:
        """Replace the text in *checkout*. Raises ValueError unless it stands there once."""
        path = checkout / self.file
        path.write_text(self.applied_to(path.read_text(encoding="utf-8")), encoding="utf-8")

    def applied_to(self, text: str) -> str:
        """Return *text* with the replacement. Raises ValueError unless the old text stands in it once."""
        if text.count(self.old) != 1:
            message = f"{self.file} has the text {text.count(self.old)} times, not once: {self.old!r}"
            raise ValueError(message)
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake, and where it should be noticed."""

    name: str
    breaks: str
    """What goes wrong, in a sentence."""
    likely: tuple[str, ...]
    """The tests or test files that most likely notice it. They run first, then the other tests of those files."""
    edits: tuple[Edit, ...]
    only_all: str = ""
    """Why only the tests of `--all` can notice it; empty if the quick lane has to."""
