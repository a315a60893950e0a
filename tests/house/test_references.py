"""The references in docs/reference are what the code says, and leave nothing out."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sqlmq
import sqlmq.aio
import sqlmq.opentelemetry
import sqlmq.prometheus
import sqlmq.testing
from docs.reference.markdown import escaped, prose, table
from sqlmq.background.registry import GroupMember

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "api.md"
ERRORS = {
    name: one for name, one in vars(sqlmq.errors).items() if inspect.isclass(one) and issubclass(one, sqlmq.SqlmqError)
}
CLASSES = {name: one for name in sqlmq.__all__ if inspect.isclass(one := getattr(sqlmq, name))} | ERRORS
CLASSES["Clock"] = sqlmq.testing.Clock
CLASSES["Collector"] = sqlmq.prometheus.Collector
CLASSES["Telemetry"] = sqlmq.opentelemetry.Telemetry
MODULES: list[ModuleType] = [sqlmq.aio, sqlmq.migrate, sqlmq.opentelemetry, sqlmq.prometheus, sqlmq.testing]
# What the library asks of its own objects, though it stands there under a public name.
INTERNAL = {
    "Consumer": set(vars(GroupMember)),
    "Message": {"arrived", "check_size", "headers_json"},
    "Publication": {"move_to", "set_result"},
}


@cache
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def section(heading: str) -> str:
    """What stands below a heading, up to the next of its rank or above."""
    rank = len(heading.partition(" ")[0])
    _, _, rest = text().partition(f"\n{heading}\n")
    return re.split(rf"^#{{1,{rank}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def public(cls: type) -> Iterator[tuple[str, object]]:
    """Methods and properties of *cls*, also those from classes that are not public."""
    for base in (base for base in cls.__mro__ if base.__module__.startswith("sqlmq.")):
        if base is cls or base not in CLASSES.values():
            for name, member in vars(base).items():
                if not name.startswith("_") and name not in INTERNAL.get(cls.__name__, ()):
                    yield name, member


METHODS = {
    f"#### {cls.__name__}.{name}": inspect.unwrap(getattr(member, "__func__", member))  # type: ignore[arg-type]
    for cls in CLASSES.values()
    for name, member in public(cls)
    if inspect.isfunction(getattr(member, "__func__", member))
}
FUNCTIONS = {
    f"### {module.__name__.removeprefix('sqlmq.')}.{name}": one
    for module in (sqlmq.migrate, sqlmq.opentelemetry)
    for name, one in vars(module).items()
    if inspect.isfunction(one) and not name.startswith("_") and one.__module__ == module.__name__
} | {
    f"### failpoints.{name}": inspect.unwrap(getattr(sqlmq.testing.failpoints, name))
    for name in ("armed", "raising", "exiting", "stopping")
}


def test_the_references_are_what_the_code_says() -> None:
    pytest.importorskip("griffe", reason="only the group `dev` installs what writes the references")
    from docs.reference.__main__ import HERE, PAGES

    old = [name for name, write in PAGES.items() if (HERE / name).read_text(encoding="utf-8") != write()]

    assert set(PAGES) == {path.name for path in HERE.glob("*.md")}
    assert old == [], "run python3 dev.py references"


def test_the_references_are_written_by_a_command_that_leaves_alone_what_is_as_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("griffe", reason="only the group `dev` installs what writes the references")
    from docs.reference import __main__ as command

    monkeypatch.setattr(command, "HERE", tmp_path)
    monkeypatch.setattr(command, "PAGES", {"new.md": lambda: "new\n", "old.md": lambda: "old\n"})
    (tmp_path / "old.md").write_text("old\n", encoding="utf-8")

    command.main()

    assert (tmp_path / "new.md").read_text(encoding="utf-8") == "new\n"
    assert capsys.readouterr().out == "docs/reference/new.md: written\ndocs/reference/old.md: as it was\n"


def test_no_public_name_is_missing() -> None:
    names = (
        [f"### {name}" for name in CLASSES] + [f"## {module.__name__}" for module in MODULES] + [*METHODS, *FUNCTIONS]
    )

    assert [name for name in names if text().count(f"\n{name}\n") != 1] == []


def test_no_name_is_there_that_is_not_public() -> None:
    headings = re.findall(r"^#{3,4} .+$", text(), re.MULTILINE)

    assert set(headings) == {f"### {name}" for name in CLASSES} | METHODS.keys() | FUNCTIONS.keys()


def test_a_signature_has_every_parameter_with_its_default() -> None:
    functions = {**METHODS, **FUNCTIONS}

    assert functions
    assert [heading for heading, one in functions.items() if shown(section(heading)) != parameters(one)] == []


def parameters(function: Callable[..., object]) -> dict[str, object]:
    """The parameters of *function*, with their defaults."""
    taken = inspect.signature(function).parameters
    return {name: one.default for name, one in taken.items() if name not in {"self", "cls"}}


def shown(part: str) -> dict[str, object]:
    """The parameters of the signature in *part*, with their defaults."""
    written = re.search(r"^```python\n(.+?)\n```$", part, re.MULTILINE | re.DOTALL)
    assert written
    function = ast.parse(f"{re.sub('^class', 'def', written[1])}: ...").body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    taken, empty = function.args, inspect.Parameter.empty
    positional = [*taken.posonlyargs, *taken.args]
    defaults = [None] * (len(positional) - len(taken.defaults)) + [*taken.defaults]
    every = [*zip(positional, defaults, strict=True), *zip(taken.kwonlyargs, taken.kw_defaults, strict=True)]
    found = {one.arg: empty if given is None else eval(ast.unparse(given)) for one, given in every}  # noqa: S307 - our page
    return ({taken.vararg.arg: empty} if taken.vararg else {}) | found


def test_what_applications_make_is_shown_with_all_that_it_takes() -> None:
    made = [sqlmq.MQ, sqlmq.AsyncMQ, sqlmq.Message, sqlmq.Retry, sqlmq.Retention, sqlmq.DoctorLimits]
    pages = {cls: section(f"### {cls.__name__}").partition("\n\n#### ")[0] for cls in made}

    assert [cls.__name__ for cls in made if shown(pages[cls]) != parameters(cls)] == []


def test_what_only_the_library_makes_is_not_shown_being_made() -> None:
    made = [sqlmq.Producer, sqlmq.Consumer, sqlmq.Transaction, sqlmq.Parked, sqlmq.Publication, sqlmq.AsyncConsumer]

    assert [cls.__name__ for cls in made if f"class {cls.__name__}(" in text()] == []


def test_every_attribute_has_its_row() -> None:
    missing = [
        f"{cls.__name__}.{name}"
        for cls in CLASSES.values()
        for name in attributes(cls)
        if f"\n| `{name}` | `" not in section(f"### {cls.__name__}")
    ]

    assert missing == []


def attributes(cls: type) -> set[str]:
    """The public attributes and properties of *cls*."""
    annotated = {name for name in vars(cls).get("__annotations__", {}) if not name.startswith("_")}
    return annotated | {name for name, member in public(cls) if isinstance(member, property)}


def test_an_attribute_is_explained_by_what_stands_below_it_in_the_code() -> None:
    row = "| `end_offset` | `int` | The offset of the next message to be appended. |"

    assert row in section("### PartitionDescription")


def test_what_an_error_holds_has_the_type_of_the_argument_it_was() -> None:
    part = section("### FencedError")

    assert "| `partitions` | `tuple[int, ...]` |" in part
    assert [name for name in ERRORS if re.search(r"^\| `\w+` \| +\|", section(f"### {name}"), re.MULTILINE)] == []


def test_the_tree_of_errors_has_each_below_what_it_inherits_from() -> None:
    lines = re.findall(r"^( *)- \[(\w+)\]\(#\w+\)(?:, also a `(\w+)`)?$", section("## Errors"), re.MULTILINE)
    above: list[str] = []
    found = {}
    for indent, name, other in lines:
        depth = len(indent) // 2
        above[depth:] = [name]
        found[name] = {*above[:depth][-1:], *filter(None, [other])}

    assert found == {
        name: {base.__name__ for base in cls.__bases__ if base is not Exception} for name, cls in ERRORS.items()
    }


def test_a_short_name_in_a_signature_is_explained() -> None:
    part = section("## Types")

    assert '| `Ack` | `Literal["auto", "on_delivery"]` |' in part
    assert "| `AsyncSession` | `sqlalchemy.ext.asyncio.AsyncSession` |" in part


def test_modules_that_are_public_have_what_they_export() -> None:
    assert set(sqlmq.aio.__all__) <= CLASSES.keys()
    assert all(f"[{name}](#{name.lower()})" in section("## sqlmq.aio") for name in sqlmq.aio.__all__)
    assert {
        importlib.import_module(f"sqlmq.{found}") for found in re.findall(r"^## sqlmq\.(\w+)$", text(), re.MULTILINE)
    } == {*MODULES}


def test_a_table_leaves_out_columns_that_are_empty_and_keeps_bars_apart() -> None:
    assert table(("a", "b", "c"), [("1|2", "", "x\n  y"), ("3", "", "")]) == (
        "| a | c |\n|---|---|\n| 1\\|2 | x y |\n| 3 |  |"
    )
    assert table(("a", "b"), []) == ""


def test_plain_text_is_read_on_a_page_as_it_is() -> None:
    assert escaped("a * b < c \\n and `*.json`") == "a \\* b \\< c \\\\n and `*.json`"


def test_a_block_that_two_colons_announce_is_announced_by_one() -> None:
    assert prose("Run it::\n\n    go()\n\n``a::b`` stays.") == "Run it:\n\n    go()\n\n``a::b`` stays."
