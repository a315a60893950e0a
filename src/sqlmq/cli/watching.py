"""Views that refresh: in place on a terminal, one after the other elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable


def repeat(show: Callable[[], None], seconds: float | None) -> None:
    """Call *show*, which prints the view, every *seconds* until a signal arrives; only once if *seconds* is None."""
    while True:
        if seconds is not None and sys.stdout.isatty():
            click.clear()
        show()
        if seconds is None:
            return
        sys.stdout.flush()
        time.sleep(seconds)
