"""`sqlmq run` is process 1 of a container, and gets SIGTERM while it still imports the application. It must end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from case import COMMAND, Case, crowding, rest, run, until
from sqlmq import MQ

IMPORTING = "IMPORTING"
APPLICATION = f"""
import time
print({IMPORTING!r}, flush=True)
time.sleep(4)
def handle(message):
    pass
"""
NAMESPACE = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
"""A namespace of process ids: its first process has the id 1, as in a container."""
MOMENTS = (0.0, 0.4, None)
"""Seconds after the start; None is during the import of the application.

For process 1, the start is when it has a handler of the signal: the kernel drops what comes before, whatever the program.
"""
SETTLE_SECONDS = 5
"""How long the start of Python may take."""
END_SECONDS = 20


def judge(case: Case) -> None:
    (case.directory / "slowapp.py").write_text(APPLICATION)
    with MQ(case.url) as mq:
        mq.create_topic("orders", 1)
    for seconds in MOMENTS:
        terminate(case, "alone", (), seconds)
    if not has_namespaces():
        print("No namespaces of process ids here: process 1 was not tried.")
        return
    for seconds in MOMENTS:
        terminate(case, "as process 1", NAMESPACE, seconds)


def has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


def terminate(case: Case, name: str, namespace: tuple[str, ...], seconds: float | None) -> None:
    program = subprocess.Popen(
        [*namespace, *COMMAND, "run", "slowapp:handle", "--topic", "orders", "--group", "group"],
        env={
            **os.environ,
            "SQLMQ_URL": case.url,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(case.directory), os.environ.get("PYTHONPATH")])),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with program:
        target = first_child(program.pid) if namespace else program.pid
        if target is None:
            program.kill()
            return
        if namespace and not until(lambda: has_handler(target), seconds=SETTLE_SECONDS * crowding()):
            case.fault(f"{name}: it has no handler of SIGTERM after {SETTLE_SECONDS} s")
        if seconds is None:
            assert program.stdout is not None
            assert any(IMPORTING in line for line in program.stdout), (
                "sqlmq run ended before it imported the application"
            )
            rest(0.5)
        else:
            rest(seconds)
        os.kill(target, signal.SIGTERM)
        try:
            program.wait(END_SECONDS * crowding())
        except subprocess.TimeoutExpired:
            moment = "while the application is imported" if seconds is None else f"{seconds} s after the start"
            case.fault(f"{name}, SIGTERM {moment}: still running after {END_SECONDS} s")
            os.kill(target, signal.SIGKILL)


def first_child(pid: int) -> int | None:
    """Return the first process that *pid* has started; None if it starts none within a second."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not until(lambda: children.read_text() != "", seconds=1):
        return None
    return int(children.read_text().split()[0])


def has_handler(pid: int) -> bool:
    """Whether the process has set a handler of SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


if __name__ == "__main__":
    run(judge)
