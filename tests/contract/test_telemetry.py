"""What OpenTelemetry is told, and the trace that goes from a producer through the log to a handler."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, context, metrics, propagate, trace
from opentelemetry.trace import SpanKind, StatusCode

from sqlmq import MQ, Message, ReceivedMessage, UnknownTopicError
from sqlmq.errors import MessageTooLargeError
from sqlmq.opentelemetry import instrument
from tests.support.handlers import drain
from tests.support.telemetry import Recording, follows, linked
from tests.support.waiting import finish, receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.application import Application

SENT, CONSUMED = "messaging.client.sent.messages", "messaging.client.consumed.messages"
SENDING, HANDLING = "messaging.client.operation.duration", "messaging.process.duration"


@pytest.fixture
def mq(make_mq: MakeMQ, recording: Recording) -> MQ:
    """An MQ that is recorded."""
    mq = make_mq()
    recording.of(mq)
    mq.create_topic("orders", 1)
    return mq


def headers_in_log(mq: MQ) -> list[dict[str, str]]:
    schema = f"{mq.schema}." if mq.schema else ""
    with mq.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"SELECT headers FROM {schema}sqlmq_message ORDER BY msg_offset")
        return [{} if row[0] is None else json.loads(row[0]) if isinstance(row[0], str) else row[0] for row in rows]


# --- The trace ---


def test_a_trace_goes_from_a_producer_to_a_handler_and_to_what_that_sends(mq: MQ, recording: Recording) -> None:
    mq.producer("orders").produce(Message(b"1"))

    drain(mq.consumer("orders", "billing"), lambda _message: mq.producer("invoices").produce(Message(b"2")))

    sent, handled, next_sent = (recording.span(name) for name in ("send orders", "process orders", "send invoices"))
    assert follows(handled, sent)
    assert linked(handled) == {sent.context.span_id}
    assert follows(next_sent, handled)
    assert {span.context.trace_id for span in (handled, next_sent)} == {sent.context.trace_id}
    assert (sent.kind, handled.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)


def test_a_trace_goes_through_a_handler_in_a_transaction(mq: MQ, recording: Recording) -> None:
    producer = mq.producer("invoices")
    mq.producer("orders").produce(Message(b"1"))

    def handler(_message: ReceivedMessage, session: Session) -> None:
        producer.produce(Message(b"2"), session=session)

    drain(mq.consumer("orders", "billing"), handler, transaction=True)

    assert follows(recording.span("process orders"), recording.span("send orders"))
    assert follows(recording.span("send invoices"), recording.span("process orders"))
    (message,) = finish(mq.consumer("invoices", "books"), 1)
    assert f"{recording.span('send invoices').context.span_id:016x}" in message.headers["traceparent"]


def test_each_attempt_at_a_message_that_fails_is_a_span_in_its_trace(mq: MQ, recording: Recording) -> None:
    mq.producer("orders").produce(Message(b"1", b"key"))
    attempts: list[ReceivedMessage] = []

    def handler(message: ReceivedMessage) -> None:
        attempts.append(message)
        if len(attempts) == 1:
            raise ArithmeticError("the card 4111 is no good")

    assert drain(mq.consumer("orders", "billing"), handler).parked == 1

    failed, succeeded = recording.spans("process orders")
    assert follows(failed, recording.span("send orders"))
    assert follows(succeeded, recording.span("send orders"))
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "ArithmeticError"
    assert [dict(event.attributes or {}) for event in failed.events] == [{"exception.type": "ArithmeticError"}]
    assert "4111" not in failed.to_json()
    assert succeeded.status.status_code is StatusCode.UNSET


def test_a_trace_goes_through_a_delay(mq: MQ, recording: Recording) -> None:
    mq.producer("orders").schedule(Message(b"1"), delay_seconds=0.01)
    receive(mq.consumer("orders", "audit"), 1)

    drain(mq.consumer("orders", "billing"), lambda _message: None)

    sent = recording.span("send orders")
    assert follows(recording.span("process orders"), sent)
    assert (sent.attributes or {})["messaging.destination.partition.id"] == "0"
    assert "messaging.message.id" not in (sent.attributes or {})


@pytest.mark.parametrize(("method", "how"), [("produce", {}), ("schedule", {"delay_seconds": 0})])
def test_a_trace_goes_through_the_applications_transaction(
    mq: MQ, app: Application, recording: Recording, method: str, how: dict[str, Any]
) -> None:
    send = getattr(mq.producer("orders"), method)
    with app.session() as session:
        send(Message(b"0"), session=session, **how)
        session.rollback()
        send(Message(b"1"), session=session, **how)
        session.commit()

    receive(mq.consumer("orders", "audit"), 1)
    drain(mq.consumer("orders", "billing"), lambda _message: None)

    rolled_back, committed = recording.spans("send orders")
    assert linked(recording.span("process orders")) == {committed.context.span_id} != {rolled_back.context.span_id}


def test_messages_of_one_call_share_a_span(mq: MQ, recording: Recording) -> None:
    places = mq.producer("orders").produce_many([Message(b"1"), Message(b"2", headers={"type": "json"})])

    sent = recording.span("send orders")
    messages = receive(mq.consumer("orders", "billing"), 2)
    assert [place.offset for place in places] == [0, 1]
    assert (sent.attributes or {})["messaging.batch.message_count"] == 2
    assert {message.headers["traceparent"].split("-")[2] for message in messages} == {f"{sent.context.span_id:016x}"}
    assert [message.headers.get("type") for message in messages] == [None, "json"]


def test_a_batch_is_linked_to_each_of_its_messages(mq: MQ, recording: Recording) -> None:
    producer = mq.producer("orders")
    for value in (b"1", b"2", b"3"):
        producer.produce(Message(value))

    drain(mq.consumer("orders", "billing"), lambda _messages: None, batch_size=10)

    handled = recording.span("process orders")
    assert handled.parent is None
    assert linked(handled) == {span.context.span_id for span in recording.spans("send orders")}
    assert len(handled.links) == 3
    assert (handled.attributes or {})["messaging.batch.message_count"] == 3


def test_the_span_of_what_was_submitted_ends_when_it_is_sent(mq: MQ, recording: Recording) -> None:
    mq.producer("orders").submit(Message(b"1"), partition=0).result()

    assert (recording.span("send orders").attributes or {})["messaging.message.id"] == "orders/0@0"


def test_a_call_without_messages_has_no_span(mq: MQ, recording: Recording) -> None:
    producer = mq.producer("orders")

    assert producer.produce_many([]) == []
    assert producer.schedule_many([], delay_seconds=1) == []
    assert recording.spans("send orders") == []


def test_baggage_arrives_in_the_handler_and_goes_on(mq: MQ) -> None:
    arrived: list[object] = []
    token = context.attach(baggage.set_baggage("tenant", "42"))
    mq.producer("orders").produce(Message(b"1"))
    context.detach(token)

    drain(mq.consumer("orders", "billing"), lambda _message: arrived.append(baggage.get_baggage("tenant")))

    assert arrived == ["42"]
    assert baggage.get_all() == {}


# --- Headers ---


def test_a_message_stays_as_it_was_given(mq: MQ) -> None:
    message = Message(b"1", b"key", {"type": "json"})

    mq.producer("orders").produce(message)

    assert message == Message(b"1", b"key", {"type": "json"})
    (arrived,) = receive(mq.consumer("orders", "billing"), 1)
    assert (arrived.value, arrived.key, set(arrived.headers)) == (b"1", b"key", {"type", "traceparent"})


def test_a_message_that_has_a_trace_keeps_it(mq: MQ, recording: Recording) -> None:
    carrier: dict[str, str] = {}
    with recording.tracer.start_as_current_span("created") as created:
        propagate.inject(carrier)

    mq.producer("orders").produce(Message(b"1", headers=carrier))
    drain(mq.consumer("orders", "billing"), lambda _message: None)

    assert linked(recording.span("send orders")) == {created.get_span_context().span_id}
    assert linked(recording.span("process orders")) == {created.get_span_context().span_id}


def test_a_message_that_is_passed_on_goes_on_in_the_trace_of_its_handler(mq: MQ, recording: Recording) -> None:
    mq.producer("orders").produce(Message(b"1"))

    drain(mq.consumer("orders", "billing"), lambda message: mq.producer("invoices").produce(message))
    drain(mq.consumer("invoices", "books"), lambda _message: None)

    assert follows(recording.span("send invoices"), recording.span("process orders"))
    assert follows(recording.span("process invoices"), recording.span("send invoices"))


def test_the_trace_counts_in_the_size_of_the_headers(make_mq: MakeMQ, recording: Recording) -> None:
    mq = make_mq(max_message_bytes=50)
    producer = mq.producer("orders")
    producer.produce(Message(b"1", headers={"type": "json"}))
    recording.of(mq)

    with pytest.raises(MessageTooLargeError, match="headers"):
        producer.produce(Message(b"2", headers={"type": "json"}))
    assert (recording.span("send orders").attributes or {})["error.type"] == "MessageTooLargeError"


# --- Off ---


def sends(mq: MQ) -> list[Callable[[], object]]:
    """Each way of sending."""
    producer = mq.producer("orders")
    return [
        lambda: producer.produce(Message(b"1", headers={"type": "json"})),
        lambda: producer.produce_with_partition(Message(b"2"), 0),
        lambda: producer.produce_many([Message(b"3")]),
        lambda: producer.submit(Message(b"4")).result(),
        lambda: producer.schedule(Message(b"5"), delay_seconds=0),
    ]


def test_headers_are_as_they_were_given_where_nobody_observes(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.create_topic("orders", 1)
    for send in sends(mq):
        send()
    receive(mq.consumer("orders", "billing"), 5)

    assert headers_in_log(mq) == [{"type": "json"}, {}, {}, {}, {}]


def test_every_way_of_sending_is_observed_until_nobody_observes_any_more(mq: MQ, recording: Recording) -> None:
    for send in sends(mq):
        send()
    receive(mq.consumer("orders", "audit"), 5)
    mq.observe(None)
    mq.producer("orders").produce(Message(b"6"))
    drain(mq.consumer("orders", "billing"), lambda _message: None)

    assert len(recording.spans("send orders")) == 5
    assert recording.spans("process orders") == []
    assert ["traceparent" in headers for headers in headers_in_log(mq)] == [True] * 5 + [False]


def test_without_an_sdk_nothing_is_added(make_mq: MakeMQ) -> None:
    mq = make_mq()
    instrument(mq, tracer_provider=trace.NoOpTracerProvider(), meter_provider=metrics.NoOpMeterProvider())
    mq.producer("orders").produce(Message(b"1"))
    handled: list[ReceivedMessage] = []
    drain(mq.consumer("orders", "billing"), handled.append)

    assert [dict(message.headers) for message in handled] == [{}]


# --- What is told ---


def test_spans_tell_what_the_conventions_ask_for(mq: MQ, recording: Recording, database: DatabaseUnderTest) -> None:
    mq.producer("orders").produce(Message(b"1", b"key"))
    drain(mq.consumer("orders", "billing"), lambda _message: None)

    url = mq.engine.url
    server = {"server.address": url.host, "server.port": url.port} if database.is_postgres else {}
    common = {
        "messaging.system": "sqlmq",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "0",
        "messaging.message.id": "orders/0@0",
        "messaging.sqlmq.message.offset": 0,
        **{name: value for name, value in server.items() if value},
    }
    assert recording.span("send orders").attributes == {
        **common,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }
    assert recording.span("process orders").attributes == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "billing",
    }


def test_metrics_count_messages_and_durations(mq: MQ, recording: Recording) -> None:
    producer = mq.producer("orders")
    producer.produce(Message(b"1"))
    producer.produce_many([Message(b"2"), Message(b"3")])

    def handler(message: ReceivedMessage) -> None:
        if message.value == b"2":
            raise ArithmeticError

    drain(mq.consumer("orders", "billing"), handler)

    assert recording.count(SENT) == 3
    assert recording.count(SENDING) == 2
    assert recording.count(CONSUMED) == recording.count(HANDLING) == 2
    assert recording.count(CONSUMED, error_type="ArithmeticError") == 3
    told, point = recording.points(HANDLING)[0]
    assert told["messaging.consumer.group.name"] == "billing"
    assert told["messaging.destination.name"] == "orders"
    assert "messaging.message.id" not in told
    assert (point.explicit_bounds[0], point.explicit_bounds[-1]) == (0.005, 10)


def test_a_failure_to_send_is_told_by_its_type(mq: MQ, recording: Recording) -> None:
    producer = mq.producer("orders")
    mq.delete_topics("orders")

    with pytest.raises(UnknownTopicError):
        producer.produce(Message(b"1"))
    with pytest.raises(UnknownTopicError):
        producer.produce_many([Message(b"1"), Message(b"2")])

    for span in recording.spans("send orders"):
        assert (span.attributes or {})["error.type"] == "UnknownTopicError"
        assert span.status.status_code is StatusCode.ERROR
    assert recording.count(SENT, error_type="UnknownTopicError") == 3
    assert recording.count(SENDING, error_type="UnknownTopicError") == 2
    assert recording.count(SENT) == 0


def test_a_loop_can_be_told_of_too(make_mq: MakeMQ, recording: Recording) -> None:
    mq = make_mq()
    telemetry = recording.of(mq)
    mq.producer("orders").produce(Message(b"1"))
    (message,) = receive(mq.consumer("orders", "billing"), 1)

    with telemetry.handle("billing", [message]):
        inside = trace.get_current_span().get_span_context().span_id

    assert follows(recording.span("process orders"), recording.span("send orders"))
    assert recording.span("process orders").context.span_id == inside
    assert not trace.get_current_span().get_span_context().is_valid
