"""The programs whose schedules are explored: two or three sessions each, and what must hold in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from sqlmq import Message

if TYPE_CHECKING:
    from tests.schedules.scene import Scene


def produce_produce_consume(scene: Scene) -> None:
    """Two producers, one of them with a batch, and a reader, on one partition."""
    scene.create()
    first, second, consumer = scene.producer(0), scene.producer(1), scene.consumer(2)
    scene.log_grows_only_at_its_end()

    scene.session(lambda: [scene.send(first, value) for value in (b"a1", b"a2")])
    scene.session(lambda: scene.send(second, b"b1", b"b2"))

    def read() -> None:
        scene.poll(consumer)
        scene.poll(consumer)
        scene.commit(consumer)

    scene.session(read)
