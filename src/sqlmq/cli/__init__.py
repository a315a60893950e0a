"""The command ``sqlmq``.

    root               the command with its subcommands
    commands           one command, one file
    run                `sqlmq run`: an application's handler, called with messages, in one process or several
    demo               `sqlmq demo`: a demonstration in ten seconds
    settings           the options that every command has, and the queue they name
    options            options that several commands share, and the parsing of durations, times and sizes
    retention_options  the options of commands that set a retention
    output             prints tables for people and JSON lines for programs
    formats            formats of a consumed message
    watching           views that refresh
    signals            SIGINT and SIGTERM, handled only at safe places

A module here reads options, calls the library, and prints. The library can do everything that a command does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.consumer.worker.signals import hear_as_process_1

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``sqlmq`` with *arguments*, by default those of the process, and end the process with its exit code.

    Nothing heavy is imported before SIGTERM is heard.
    """
    hear_as_process_1()
    from sqlmq.cli.root import main as command

    command(arguments, prog_name="sqlmq")
