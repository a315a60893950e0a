"""Changes to what was sent, and to the log at the end."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.verify.selftest.draft import NotPossibleError, listed, messages, number

if TYPE_CHECKING:
    from sqlmq.verify.history import Json
    from tests.verify.selftest.draft import Draft
    from tests.verify.selftest.simulated_queue import Line

_CONTENT = ("m", "h", "key", "at")


def lose_message(draft: Draft) -> None:
    """An acknowledged message is taken from the end of the log."""
    acknowledged = set(draft.acknowledged("txn", group="totals"))
    row = draft.last_row("copies", lambda row: row["m"] in acknowledged)
    draft.end(row)["end"] = row["offset"]
    draft.remove(row)


def fail_acknowledged(draft: Draft) -> None:
    """A send that was acknowledged is said to have failed."""
    _, ok = draft.pick(list(draft.pairs("send", topic="orders")))
    ok["type"], ok["err"] = "fail", "DatabaseBusyError"
    ok.pop("placed")


def undo_committed(draft: Draft) -> None:
    """A savepoint is said to have been rolled back, and its message is in the log."""
    invoke = draft.pick([one for one, _ in draft.pairs("txn") if messages(one) and not listed(one, "delivered")])
    invoke["undone"] = [*listed(invoke, "undone"), messages(invoke)[0]["m"]]


def add_unknown(draft: Draft) -> None:
    """A message that no client sent is at the end of the log."""
    last = draft.last_row("copies")
    draft.history.rows.append(last | {"offset": number(last, "offset") + 1, "m": "r1:unknown:1"})
    draft.end(last)["end"] = number(last, "offset") + 2


def corrupt(draft: Draft) -> None:
    """A group got another value than the one that was sent."""
    ok = draft.pick([ok for _, ok in draft.pairs("poll") if listed(ok, "delivered")])
    draft.pick(messages(ok, "delivered"))["h"] = "damaged"


def misplace(draft: Draft) -> None:
    """A message is not in the partition of its key."""
    rows = [row for row in draft.rows("message", topic="orders", partition=0) if row["key"] is not None]
    stray = draft.pick(rows)
    others = [row for row in draft.rows("message", topic="orders", partition=1) if row["key"] is not None]
    other = draft.pick(others)
    for name in _CONTENT:
        stray[name], other[name] = other[name], stray[name]


def duplicate(draft: Draft) -> None:
    """A message is in the log a second time, at its end."""
    row = draft.pick(draft.rows("message", topic="copies"))
    ends = draft.end(row)
    draft.history.rows.append(row | {"offset": ends["end"]})
    ends["end"] = number(ends, "end") + 1


def acknowledge_another(draft: Draft) -> None:
    """A sender was told another offset than the message has."""
    ok = draft.pick([ok for _, ok in draft.pairs("send", topic="orders") if "offset" in messages(ok, "placed")[0]])
    placed = messages(ok, "placed")[0]
    placed["offset"] = number(placed, "offset") + 1


def make_gap(draft: Draft) -> None:
    """An offset in the middle of the log has no message."""
    draft.remove(draft.pick(draft.rows("message", topic="orders")[5:-5]))


def reuse_offset(draft: Draft) -> None:
    """Two messages have the same offset."""
    rows = draft.rows("message", topic="orders", partition=0)
    if len(rows) < 2:
        raise NotPossibleError
    draft.pick(rows[1:])["offset"] = rows[0]["offset"]


def lower_end(draft: Draft) -> None:
    """A partition is said to end before its last message."""
    row = draft.last_row("orders")
    draft.end(row)["end"] = row["offset"]


def swap_far_apart(draft: Draft) -> None:
    """The first and the last message of a partition have changed their places."""
    rows = draft.rows("message", topic="copies", partition=draft.chosen.randrange(3))
    _swap(rows[0], rows[-1])


def reorder_batch(draft: Draft) -> None:
    """Two messages of a batch are in the log in the other order."""
    one, other = draft.pick([(rows[0], rows[1]) for rows in _batches(draft)])
    _swap(one, other)


def interrupt_batch(draft: Draft) -> None:
    """A message of another sender is among those of a batch."""
    candidates = []
    for rows in _batches(draft):
        after = number(rows[-1], "offset") + 1
        outside = draft.rows("message", topic=rows[0]["topic"], partition=rows[0]["partition"], offset=after)
        candidates += [(rows[-1], row) for row in outside]
    _swap(*draft.pick(candidates))


def tear(draft: Draft) -> None:
    """Of a transaction with an unknown outcome, one message is in the log, and another is not."""
    acknowledged = [pair for pair in draft.pairs("txn") if len(messages(pair[0])) - len(listed(pair[0], "undone")) > 1]
    invoke, ok = draft.pick([pair for pair in acknowledged if not listed(pair[0], "delivered")])
    ok["type"], ok["err"] = "info", "OutcomeUnknownError"
    draft.remove(draft.row_of(next(one["m"] for one in messages(invoke) if one.get("topic") == "orders")))


def cross(draft: Draft) -> None:
    """Of two transactions, one is first in one partition, and the other one in another."""
    places: dict[tuple[Json, Json], list[Line]] = defaultdict(list)
    writers: dict[Json, Json] = {}
    for invoke, _ in draft.pairs("txn"):
        writers |= {one["m"]: f"{invoke['p']}/{invoke['i']}" for one in messages(invoke)}
    for row in draft.rows("message"):
        if row["m"] in writers:
            places[row["topic"], row["partition"]].append(row)
    first = {writers[row["m"]]: row for row in places["orders", 0]}
    second = {writers[row["m"]]: row for row in places["trimmed", 0]}
    both = sorted(first.keys() & second.keys(), key=lambda one: number(first[one], "offset"))
    one, other = draft.pick(
        [(a, b) for a, b in pairwise(both) if number(second[a], "offset") < number(second[b], "offset")]
    )
    _swap(second[one], second[other])


def read_own(draft: Draft) -> None:
    """A transaction received a message that it sends itself."""
    invoke = draft.pick([one for one, _ in draft.pairs("txn") if listed(one, "delivered") and messages(one)])
    messages(invoke, "delivered")[0]["m"] = messages(invoke)[0]["m"]


def age_snapshot(draft: Draft) -> None:
    """A snapshot of the ends does not include what had been acknowledged."""
    snapshots = [ok for _, ok in draft.pairs("snapshot", topic="orders")]
    if len(snapshots) < 5:
        raise NotPossibleError
    snapshots[-1]["ends"] = snapshots[0]["ends"]


def append_early(draft: Draft) -> None:
    """A delayed message was appended a second before it was due."""
    due = {one["m"]: one["due"] for line in draft.lines("invoke", "send") for one in messages(line) if "due" in one}
    row = draft.pick([row for row in draft.rows("message") if row["m"] in due])
    when = due[row["m"]]
    row["at"] = when - 1_000_000 if isinstance(when, int) else when


def _batches(draft: Draft) -> list[list[Line]]:
    """The rows of each batch that has several in one partition."""
    found: list[list[Line]] = []
    place_of = {row["m"]: row for row in draft.rows("message")}
    for invoke, _ in draft.pairs("send"):
        by_partition: dict[Json, list[Line]] = defaultdict(list)
        for one in messages(invoke):
            if (row := place_of.get(one["m"])) is not None:
                by_partition[row["partition"]].append(row)
        found += [rows for rows in by_partition.values() if len(rows) > 1]
    return found


def _swap(one: Line, other: Line) -> None:
    if one is other:
        raise NotPossibleError
    for name in _CONTENT:
        one[name], other[name] = other[name], one[name]
