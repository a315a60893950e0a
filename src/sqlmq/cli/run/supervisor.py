"""Several processes of one command: starts them, restarts them when they die, and ends all of them.

The stdin of a child is a pipe from this process. If this process ends for any reason, the pipe closes and the child ends
itself. This works on every system, so no child remains. Children are started, not forked.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from sqlmq.cli.signals import SignalInterrupt
from sqlmq.consumer.worker.signals import SignalLink
from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

log = logging.getLogger("sqlmq.cli")

GRACE_SECONDS = 5.0
"""How much longer a child may take to end than its handlers."""
USAGE_ERROR = 2

_LOOK_SECONDS = 0.05
_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 30.0
_HEALTHY_SECONDS = 60.0
"""After this much running time, the next restart has the first delay again."""


class Child:
    """One of the processes, across its restarts."""

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.number = number
        self._command = command
        self._environment = environment
        self._deaths = 0
        self._start_at = 0.0
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._passed_on: set[int] = set()
        self.is_done = False
        """Whether the process has ended and will not be restarted."""

    def start_if_due(self, now: float) -> None:
        """Start the process unless it runs, is done, or has died too recently."""
        if self._process is not None or self.is_done or now < self._start_at:
            return
        self._started_at = now
        self._process = subprocess.Popen(  # noqa: S603 - the same Python, and the options of this command
            self._command,
            stdin=subprocess.PIPE,
            env=self._environment,
            # Ctrl-C reaches only the supervisor, which passes it on.
            start_new_session=True,
        )
        log.info(
            "Process %d started with pid %d.",
            self.number,
            self._process.pid,
            extra=log_fields("process started", process=self._process.pid),
        )

    def look(self, now: float, *, may_start_again: bool) -> int | None:
        """Return the exit status if the process has ended; None if it runs or has not started yet."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        pid = self._process.pid
        self._forget()
        if status == 0 or self._passed_on.intersection((-status, status - 128)):
            # A process that gets the signal during its start ends by the signal, or with 128 plus its number.
            self.is_done = True
            return 0
        if may_start_again and status != USAGE_ERROR:
            self._deaths = 0 if now - self._started_at >= _HEALTHY_SECONDS else self._deaths
            pause = min(_BACKOFF_SECONDS * 2.0**self._deaths, _MAX_BACKOFF_SECONDS)
            self._deaths += 1
            self._start_at = now + pause
            log.error(
                "Process %d, pid %d, %s. It restarts in %.1f seconds.",
                self.number,
                pid,
                _exit_reason(status),
                pause,
                extra=log_fields("process ended", process=pid, seconds=pause),
            )
        else:
            self.is_done = True
            log.error(
                "Process %d, pid %d, %s.",
                self.number,
                pid,
                _exit_reason(status),
                extra=log_fields("process ended", process=pid),
            )
        return status

    @property
    def is_running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None

    def pass_on(self, number: int) -> None:
        """Send the signal *number* to the process. On Windows, close its stdin instead."""
        if self._process is None:
            return
        self._passed_on.add(number)
        if os.name != "nt":
            self._process.send_signal(number)
        elif self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """Kill the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None


class Supervisor:
    """Keeps *count* processes of ``sqlmq ARGUMENTS`` running until a signal arrives, or all have ended with exit code 0."""

    def __init__(
        self, count: int, arguments: Sequence[str], environment: dict[str, str], *, stop_seconds: float
    ) -> None:
        self._end_seconds = stop_seconds + GRACE_SECONDS
        command = [sys.executable, "-m", "sqlmq.cli.run.supervised", str(self._end_seconds), *arguments]
        self._children = [Child(number, command, environment) for number in range(1, count + 1)]
        self._signals: list[int] = []
        self._passed_on = 0

    def run(self) -> int:
        """Run the processes and return the exit code. Raises SignalInterrupt for a second signal."""
        link = SignalLink(self._arrive)
        try:
            link.install()
            return self._keep() or self._end()
        finally:
            for child in self._children:
                child.kill()
            link.remove()

    def _keep(self) -> int:
        while not self._signals and not all(child.is_done for child in self._children):
            now = time.monotonic()
            for child in self._children:
                child.start_if_due(now)
                if child.look(now, may_start_again=True) == USAGE_ERROR:
                    # The other processes have the same arguments and would fail too.
                    self._signals.append(signal.SIGTERM)
                    self._end()
                    return USAGE_ERROR
            time.sleep(_LOOK_SECONDS)
        return 0

    def _end(self) -> int:
        """Pass signals on and wait until all processes have ended, or the time is over. Return 0 if all ended with 0."""
        deadline = time.monotonic() + self._end_seconds
        worst = 0
        while any(child.is_running for child in self._children):
            now = time.monotonic()
            for number in self._signals[self._passed_on :]:
                self._passed_on += 1
                for child in self._children:
                    child.pass_on(number)
            for child in self._children:
                status = child.look(now, may_start_again=False)
                worst = worst or int(bool(status))
            if now >= deadline:
                fields = log_fields("processes killed", seconds=self._end_seconds)
                log.error(
                    "Some processes have not ended within %.0f seconds and are killed.", self._end_seconds, extra=fields
                )
                return 1
            time.sleep(_LOOK_SECONDS)
        if len(self._signals) > 1:
            raise SignalInterrupt(self._signals[-1])
        return worst

    def _arrive(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)


def _exit_reason(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit code {status}"
