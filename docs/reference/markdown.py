"""The pieces of a page: tables, blocks of code, links to headings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NOTICE = "<!-- Written by `python3 dev.py references` from the code: change it there. -->"


def page(title: str, *parts: str) -> str:
    """A whole page; parts that are empty are left out."""
    return "\n\n".join([f"# {title}", NOTICE, *filter(None, parts)]) + "\n"


def code(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def inline(text: str) -> str:
    """*text* as code within a line; nothing for nothing."""
    return f"`{text}`" if text else ""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without the columns that are empty in every row; nothing if there is no row."""
    kept = list(rows)
    if not kept:
        return ""
    columns = [place for place in range(len(headings)) if any(row[place] for row in kept)]
    lines = [_row([headings[place] for place in columns]), "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(_row([row[place] for place in columns]) for row in kept)])


def link(text: str) -> str:
    """A link to the heading *text* of the same page."""
    return f"[{text}](#{anchor(text)})"


def anchor(title: str) -> str:
    """What a heading is called in a link."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def prose(text: str) -> str:
    """A docstring as text for a page: a block that is announced by two colons is announced by one."""
    return re.sub(r"::(?=\n\n    )", ":", text.strip())


def escaped(text: str) -> str:
    """Plain text as it is read, though it has characters that mean something on a page; code in it stays as it is."""
    return re.sub(r"(`[^`]+`)|([\\*<])", lambda found: found[1] or "\\" + found[2], text)


def _row(cells: Sequence[str]) -> str:
    inside = (" ".join(cell.split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(inside)} |"
