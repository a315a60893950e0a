"""Both faces take the same options of a run, with the same defaults; each is checked."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from sqlmq import Consumer, Retry
from sqlmq.aio import AsyncConsumer
from sqlmq.consumer.worker.config import RunConfig


@pytest.mark.parametrize("face", [Consumer, AsyncConsumer])
def test_every_option_is_a_keyword_of_run_with_the_same_default(face: type[Consumer | AsyncConsumer]) -> None:
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(face.run).parameters.items()
        if name not in ("self", "handler", "session")
    }

    options = {option.name: option.default for option in dataclasses.fields(RunConfig)}

    assert keywords == options | {"retry": None}
    assert options["retry"] == Retry()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": "all"}, TypeError),
        ({"concurrency": 0}, ValueError),
        ({"concurrency": 1.5}, TypeError),
        ({"max_parked": 0}, ValueError),
        ({"retry": 3}, TypeError),
        ({"on_failure": "explode"}, ValueError),
        ({"max_processing_seconds": 0}, ValueError),
        ({"stop_seconds": -1}, ValueError),
        ({"idle_seconds": "soon"}, TypeError),
    ],
)
def test_an_option_that_can_not_be_is_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        RunConfig(**options)
