"""Rules of the house that the linters can't say."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

import sqlmq
import sqlmq.testing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "sqlmq"
MODULES = sorted(SOURCE.rglob("*.py"))
DATABASES = {"postgresql", "postgres", "sqlite"}
PUBLIC = [
    *(getattr(sqlmq, name) for name in sqlmq.__all__),
    *(one for one in vars(sqlmq.errors).values() if inspect.isclass(one)),
    sqlmq.testing.Clock,
]
CLASSES = [one for one in PUBLIC if inspect.isclass(one)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_members(cls: type) -> Iterator[tuple[str, object]]:
    """What *cls* itself defines for everybody: methods and properties, as functions."""
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"{cls.__name__}.{name}", member.fget
        elif isinstance(member, classmethod | staticmethod):
            yield f"{cls.__name__}.{name}", member.__func__
        elif inspect.isfunction(member):
            yield f"{cls.__name__}.{name}", member


MEMBERS = [member for cls in CLASSES for member in public_members(cls)]
FUNCTIONS = [
    *MEMBERS,
    *((one.__name__, one) for one in PUBLIC if inspect.isfunction(one)),
    *(
        (f"migrate.{name}", one)
        for name, one in vars(sqlmq.migrate).items()
        if inspect.isfunction(one) and not name.startswith("_") and one.__module__ == "sqlmq.migrate"
    ),
]


def test_everything_public_is_told_what_it_is() -> None:
    silent = [name for name in sqlmq.__all__ if not (getattr(sqlmq, name).__doc__ or "").strip()]
    # A dataclass without a docstring is given its signature as one.
    generated = [one.__name__ for one in CLASSES if (one.__doc__ or "").startswith(f"{one.__name__}(")]

    assert silent == []
    assert generated in ([], ["ProducerResult"])


def test_every_public_method_and_property_is_told_what_it_does() -> None:
    assert [name for name, member in FUNCTIONS if not inspect.getdoc(member)] == []


def test_every_public_function_has_complete_type_hints_without_any() -> None:
    incomplete = []
    for name, member in FUNCTIONS:
        assert callable(member)
        signature = inspect.signature(member)
        hints = [parameter.annotation for key, parameter in signature.parameters.items() if key not in {"self", "cls"}]
        hints.append(signature.return_annotation)
        if any(hint is inspect.Signature.empty or hint == "Any" for hint in hints):
            incomplete.append(name)

    assert incomplete == []


def test_the_public_names_are_in_order_and_each_comes_from_one_place() -> None:
    assert len(set(sqlmq.__all__)) == len(sqlmq.__all__)
    # Submodules that are public under their own name, and everything else that type checkers see imported.
    imported = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree(SOURCE / "__init__.py"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlmq")
        for alias in node.names
    }
    found = {name: getattr(sqlmq, name) for name in imported}

    assert imported.keys() == set(sqlmq.__all__)
    assert [
        name
        for name, module in imported.items()
        if module != "sqlmq" and found[name] is not getattr(importlib.import_module(module or ""), name)
    ] == []
    assert not hasattr(sqlmq, "no_such_name")


def test_every_error_is_in_the_module_of_errors_and_the_ones_to_catch_are_at_the_top() -> None:
    elsewhere = [
        f"{name_of(path)}: {node.name}"
        for path in MODULES
        if path != SOURCE / "errors.py" and not path.is_relative_to(SOURCE / "verify")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        and {ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases} & set(vars(sqlmq.errors))
    ]
    at_the_top = {name for name in sqlmq.__all__ if name in vars(sqlmq.errors)}

    assert elsewhere == []
    assert at_the_top == {
        "SqlmqError",
        "UnknownTopicError",
        "FencedError",
        "EvictedError",
        "OutcomeUnknownError",
        "DatabaseUnavailableError",
        "DatabaseBusyError",
        "ClosedError",
    }


def test_every_error_stands_in_the_tree_at_the_top_of_its_module() -> None:
    errors = importlib.import_module("sqlmq.errors")
    own = [name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, errors.SqlmqError)]

    assert [name for name in own if name not in (errors.__doc__ or "")] == []


def test_only_dialects_know_which_database_it_is() -> None:
    # SQLAlchemy needs names of databases for variants of types, and people for commands. `verify` does not trust a dialect.
    may_know = {"dialects", "cli", "schema.py", "databases.py"}
    named = [
        f"{name_of(path)}:{node.lineno}: {node.value!r}"
        for path in MODULES
        if not may_know & set(path.parts)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in DATABASES
    ]

    assert named == []


def test_every_module_opens_by_saying_what_it_holds() -> None:
    assert [name_of(path) for path in MODULES if not ast.get_docstring(tree(path))] == []


def test_no_module_is_called_after_nothing_in_particular() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base_utils"}
    everywhere = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "migrations").rglob("*.py")]

    assert [name_of(path) for path in everywhere if {path.stem, *path.relative_to(ROOT).parts} & vague] == []


def test_every_module_can_be_imported_by_itself() -> None:
    names = [module.name for module in pkgutil.walk_packages([str(SOURCE)], "sqlmq.") if "__main__" not in module.name]

    for name in names:
        assert importlib.import_module(name).__name__ == name


def lines_that_sleep(module: ast.Module) -> Iterator[int]:
    """Where something is called, or imported, that sleeps; ``asyncio.sleep(0)`` lets other tasks run."""
    nodes = list(ast.walk(module))
    letting_others_run = [
        node.func for node in nodes if isinstance(node, ast.Call) and ast.unparse(node) == "asyncio.sleep(0)"
    ]
    for node in nodes:
        if isinstance(node, ast.alias) and node.name == "sleep":
            yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr == "sleep" and node not in letting_others_run:
            yield node.lineno


def test_no_test_sleeps() -> None:
    # The server that tests run on is started and stopped by polling it, and so is what looks at its sessions; a slow
    # network is slow.
    polling = {
        ROOT / "tests" / name
        for name in (
            "faults/proxy.py",
            # Cases about time let it pass, and a greenlet sleeps to let others run.
            "cases/case.py",
            "cases/b07_gevent.py",
            "support/pgbouncer.py",
            "support/postgres_databases.py",
            "support/postgres_server.py",
            "test_postgres_server.py",
            # Slow steps of the library, made slow on purpose.
            "verify/selftest/mutations.py",
        )
    }
    sleeping = [
        f"{name_of(path)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path not in polling
        for line in lines_that_sleep(tree(path))
    ]

    assert sleeping == []


ASKS_FOR_ITSELF = {
    "database/append_connection.py": "as `watchdog`, which tests what has rested",
    "producer/batcher.py": "callers wait for each other, by the system's clock like all who wait for a mutex",
    "hooks/task_threads.py": "as the batcher, for threads to end",
    "database/watchdog.py": "how long a network is silent is told by the kernel, in its own time",
    "hooks/clock.py": "is where it comes from",
    "hooks/failpoints.py": "its gates are a test's own, and must open whatever the clock that is tested does",
    "admin/health.py": "compares the wall clock of this machine with the database's, which is what it tells",
    "opentelemetry.py": "measures what it tells, and decides nothing by it",
    "prometheus.py": "measures what it tells, and decides nothing by it",
    "aio/admin.py": "waits by the event loop, whose clock is the loop's",
}
"""Modules that do not take time, waits and chance from the clock. Neither do commands and `verify`, whose time is that of people."""


def asks_for_time_or_chance(path: Path) -> list[str]:
    """Return what a module imports or calls for time, waits or chance."""
    asking = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
            # For its types it may be named.
            is_typing = isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} == {"Random"}
            asking += [] if is_typing else sorted(names & {"time", "random", "uuid", "secrets"})
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            is_asking = called in {"threading.Condition", "threading.Event", "threading.Timer", "datetime.now"}
            is_sleeping = called == "asyncio.sleep" and ast.unparse(node) != "asyncio.sleep(0)"
            asking += [called] if is_asking or is_sleeping else []

    return asking


def test_time_waits_and_chance_come_from_the_clock() -> None:
    asking = {
        path.relative_to(SOURCE).as_posix(): found
        for path in MODULES
        if not {"cli", "verify"} & {*path.parts}
        if (found := asks_for_time_or_chance(path))
    }

    assert {name: found for name, found in asking.items() if name not in ASKS_FOR_ITSELF} == {}
    assert set(ASKS_FOR_ITSELF) - set(asking) == set()


MAY_NOT_REENTER = {
    "database/watchdog.py": "of one connection that is being opened, in two threads that no handler interrupts for long",
    "consumer/worker/pool.py": "workers alone take it, in threads where no signal handler runs",
    "hooks/failpoints.py": "of tests",
    "producer/batcher.py": "asks first whether this thread has it",
}
"""Modules with a mutex that a thread can't take twice: a finalizer or a signal handler may run in the middle of any step."""


def test_a_mutex_that_a_thread_can_not_take_twice_says_why() -> None:
    having = {
        path.relative_to(SOURCE).as_posix()
        for path in MODULES
        if not {"cli", "verify"} & {*path.parts}
        and any(
            isinstance(node, ast.Call) and ast.unparse(node.func) == "threading.Lock" for node in ast.walk(tree(path))
        )
    }

    assert having == set(MAY_NOT_REENTER)


def test_no_executor_of_python_refuses_work_at_the_end_of_the_process() -> None:
    assert [name_of(path) for path in MODULES if "import ThreadPoolExecutor" in path.read_text(encoding="utf-8")] == []


def test_nothing_below_the_shells_begins_or_ends_a_transaction() -> None:
    below = [path for path in MODULES if path.parent.name in {"operations", "store"} or path.name == "schema.py"]
    ending = [
        f"{name_of(path)}:{node.lineno}"
        for path in below
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in {"conn", "connection"}
        and node.func.attr in {"begin", "begin_nested", "commit", "rollback"}
    ]

    assert below
    assert ending == []


def modules_in(folder: Path) -> list[str]:
    """The modules and packages that stand directly in *folder*."""
    packages = [path.parent.name for path in folder.glob("*/__init__.py")]
    return [path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")] + packages


def test_every_package_lists_its_modules() -> None:
    missing = [
        f"{name_of(path.parent)}: {name}"
        for path in SOURCE.rglob("__init__.py")
        # Each command is a file of its own name, which `sqlmq --help` lists.
        if path.parent not in {SOURCE, SOURCE / "cli" / "commands"}
        for name in modules_in(path.parent)
        if name not in (ast.get_docstring(tree(path)) or "")
    ]

    assert missing == []
