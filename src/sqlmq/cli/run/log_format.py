"""The log format of long-running commands: a line on stderr for each event, with time, level and process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

    from sqlmq.cli.settings import Settings

LEVELS = ("debug", "info", "warning", "error")

_FORMAT = "%(asctime)s %(levelname)-7s [%(process)d] %(name)s: %(message)s"


def begin(ctx: click.Context, settings: Settings, level: str) -> None:
    """Log to stderr from *level* up, from sqlmq and from the handler's modules, until the command ends."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    root, own = logging.getLogger(), logging.getLogger("sqlmq")
    before = root.level
    root.addHandler(handler)
    root.setLevel("DEBUG" if settings.verbosity > 1 else level.upper())
    own.setLevel(logging.NOTSET)
    settings.log_in_short(is_wanted=False)

    def end() -> None:
        root.removeHandler(handler)
        root.setLevel(before)

    ctx.call_on_close(end)
