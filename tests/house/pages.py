"""The code blocks of the documentation's pages, and what runs each kind of them.

```python             run with the page's other blocks, in order, in an empty directory, where SQLite files may be
```python postgres    run so against a Postgres of the page's own; DOCUMENTED_URL stands for it
```sql postgres       run there, in a transaction; with `fails SQLSTATE` it has to be refused
```sh sqlite          run by bash, SQLMQ_URL naming a file in that directory
```sh postgres        run by bash, SQLMQ_URL naming that Postgres
```sh                 not run; its `sqlmq` commands and options have to exist, and what it installs is what the page needs

`test_docs` runs them where the tests run. `test_wheel` starts this file with the Python of an environment that has only
what the page installs: `python pages.py PAGE`, or `python pages.py PAGE URL` for the blocks that are for Postgres. So
nothing here may need more than sqlmq does.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

DEADLINE_SECONDS = 300.0
DOCUMENTED_URL = re.compile(r"postgresql(\+psycopg)?://sqlmq:sqlmq@127\.0\.0\.1:5432/sqlmq")


class Block(NamedTuple):
    """A fenced block: its language, the words after that, where its text begins, and the text."""

    language: str
    words: list[str]
    line: int
    text: str

    @property
    def is_for_postgres(self) -> bool:
        return "postgres" in self.words

    @property
    def is_run(self) -> bool:
        return self.language in {"python", "sql"} or (self.language == "sh" and bool(self.words))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2].split(), text[: found.start(3)].count("\n"), found[3])
        for found in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def runnable(page: Path, *, postgres: bool) -> list[Block]:
    """Return the blocks of *page* that are run on Postgres, or those that are run without it."""
    return [block for block in blocks(page) if block.is_run and block.is_for_postgres == postgres]


def installed_by(page: Path) -> set[str]:
    """Return what *page* tells the reader to install, such as ``sqlmq[postgres]``."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("pip install ")]
    return {word for command in commands for word in command[2:]}


def run_page(page: Path, directory: Path, url: str | None) -> None:
    """Run the blocks of *page* in order: those for the Postgres at *url*, or those without it. In the current directory."""
    namespace: dict[str, Any] = {"__name__": "page"}
    try:
        for block in runnable(page, postgres=url is not None):
            if block.language == "python":
                run_python(block, page, namespace, url)
            elif block.language == "sql":
                assert url is not None
                run_sql(block, url)
            else:
                run_shell(block, directory, url or "sqlite:///shell.db")
    finally:
        close_what_is_open(namespace)


def run_shell(block: Block, directory: Path, url: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=directory,
        env={**os.environ, "PATH": path, "SQLMQ_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )
    assert result.returncode == 0, f"line {block.line}: {result.stdout}{result.stderr}"


def run_python(block: Block, page: Path, namespace: dict[str, Any], url: str | None) -> None:
    text = block.text if url is None else DOCUMENTED_URL.sub(lambda _: url, block.text)
    # Empty lines before, so that a traceback shows the page's own line; and no __future__ that is ours, not the page's.
    code = compile("\n" * block.line + text, page, "exec", dont_inherit=True)
    exec(code, namespace)  # noqa: S102 - the page's own code


def run_sql(block: Block, url: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    expected = block.words[block.words.index("fails") + 1] if "fails" in block.words else None
    found = None
    with create_engine(url, poolclass=NullPool).connect() as connection:
        try:
            connection.exec_driver_sql(block.text)
            connection.commit()
        except DBAPIError as error:
            if expected is None:
                raise
            found = getattr(error.orig, "sqlstate", None)
    assert found == expected, f"line {block.line}: SQLSTATE {found}, not {expected}"


def close_what_is_open(namespace: dict[str, Any]) -> None:
    from sqlmq import MQ

    for value in namespace.values():
        if isinstance(value, MQ):
            value.close()


if __name__ == "__main__":
    run_page(Path(sys.argv[1]), Path.cwd(), sys.argv[2] if len(sys.argv) > 2 else None)
