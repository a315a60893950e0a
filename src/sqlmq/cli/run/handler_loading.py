"""Import of the handler ``MODULE:NAME`` of the command line."""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sqlmq.consumer.worker.executor import check_function
from sqlmq.hooks.error_text import traceback_of

if TYPE_CHECKING:
    from collections.abc import Callable


def check_name(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Return *value* if it has the form of a handler's name. ``load`` imports the module, after all options are checked."""
    module, _, path = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        message = f"{value!r} does not have the form MODULE:HANDLER, as in app.billing:handle."
        raise click.BadParameter(message)
    return value


def load(where: str) -> Callable[..., object]:
    """Import the handler that *where* names, also from the current directory. Raises click.UsageError."""
    module_name, _, path = where.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module: object = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and _is_in(error.name, module_name):
            message = f"Module {error.name!r} was not found. It is neither installed nor in {here}."
        else:
            click.echo(traceback_of(error), nl=False, err=True)
            message = f"Importing {module_name!r} failed, see above."
        raise click.UsageError(message) from error
    try:
        handler = reduce(getattr, path.split("."), module)
    except AttributeError as error:
        message = f"Module {module_name!r} has no {path!r}."
        raise click.UsageError(message) from error
    if not callable(handler):
        message = f"{where} must be a function, not {type(handler).__name__}."
        raise click.UsageError(message)
    try:
        check_function(handler)
    except TypeError as error:
        message = f"{where} can't be run. {error}"
        raise click.UsageError(message) from error
    return handler


def _is_in(missing: str | None, module_name: str) -> bool:
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")
