"""Random failures over random keys: each key's messages are handled in the order of the log, but for dead letters."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlmq import Message, Retry
from tests.support.handlers import Recorder, send

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import MakeMQ

EXAMPLES = 12
MAX_ATTEMPTS = 3

keys = st.sampled_from([b"a", b"b", b"c", None])
failures = st.sampled_from([0, 0, 0, 0, 1, 2, MAX_ATTEMPTS])
options = st.fixed_dictionaries(
    {
        "on_failure": st.sampled_from([None, "park", "dead", "skip"]),
        "batch_size": st.sampled_from([None, None, 5]),
        "concurrency": st.sampled_from([1, 3]),
    }
)
topics = itertools.count()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sent=st.lists(st.tuples(keys, failures), min_size=1, max_size=30), how=options)
def check(mq: MQ, sent: list[tuple[bytes | None, int]], how: dict[str, Any]) -> None:
    topic = f"topic-{next(topics)}"
    messages = [Message(b"%d" % i, key) for i, (key, _) in enumerate(sent)]
    send(mq, messages, topic=topic, partitions=2)
    handler = Recorder({b"%d" % i: count for i, (_, count) in enumerate(sent)})
    consumer = mq.consumer(topic, "billing")

    summary = consumer.run(
        handler,
        retry=Retry(max_attempts=MAX_ATTEMPTS, backoff_seconds=0.001),
        idle_seconds=0,
        handle_signals=False,
        **how,
    )

    # The attempt of a whole batch counts for each of its messages, which may be the last one they have.
    most = MAX_ATTEMPTS if how["batch_size"] is None else MAX_ATTEMPTS - 1
    hopeless = {b"%d" % i for i, (_, count) in enumerate(sent) if count >= MAX_ATTEMPTS}
    doubtful = {b"%d" % i for i, (_, count) in enumerate(sent) if count >= most}
    lost = {message.value for message in messages} - set(handler.values)
    assert hopeless <= lost <= doubtful
    for key in {key for key, _ in sent} - {None}:
        assert handler.of_key(key) == [
            message.value for message in messages if message.key == key and message.value not in lost
        ]
    assert Counter(handler.values) == Counter(message.value for message in messages if message.value not in lost)
    assert summary.dead + summary.skipped == len(lost)
    group = mq.admin.describe_group(topic, "billing")
    assert all(partition.position == partition.end_offset for partition in group.partitions)
    mq.delete_topics(topic)


def test_each_key_is_handled_in_order_but_for_dead_letters(make_mq: MakeMQ) -> None:
    check(make_mq(poll_max_seconds=0.05))
