"""Running the examples as a reader would: as programs, and as services that answer HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest

from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with *arguments* at the top of the checkout, to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE_SECONDS,
    )


@contextmanager
def running(*arguments: object, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run Python with *arguments*, and end it as Ctrl-C does; what it says on stdout and stderr is to be read as one."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Whoever reads a line of it waits no longer than this.
    deadline = threading.Timer(2 * PATIENCE_SECONDS, process.kill)
    deadline.start()
    with process:
        try:
            yield process
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate()
        finally:
            deadline.cancel()
            deadline.join()
            process.kill()
    assert process.returncode == 0, said


@contextmanager
def serving(*arguments: object, environment: Mapping[str, str]) -> Iterator[str]:
    """Run Python with *arguments*, which begin to serve HTTP, and give the URL that they say."""
    with running(*arguments, environment=environment) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
                break
        else:
            pytest.fail("".join(said))
        yield found[0]


class Answer(NamedTuple):
    """What a service answered."""

    status: int
    body: Any


def post_form(url: str, **fields: object) -> Answer:
    """Post *fields* as a form."""
    return _post(url, urlencode(fields), "application/x-www-form-urlencoded")


def post_json(url: str, **fields: object) -> Answer:
    """Post *fields* as a JSON object."""
    return _post(url, json.dumps(fields), "application/json")


def _post(url: str, body: str, content_type: str) -> Answer:
    parts = urlsplit(url)
    with closing(HTTPConnection(parts.netloc, timeout=PATIENCE_SECONDS)) as connection:
        connection.request("POST", parts.path, body, {"Content-Type": content_type})
        with connection.getresponse() as response:
            return Answer(response.status, json.load(response))
