"""Changes to what groups got, to their positions, and to what followed."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tests.verify.selftest.draft import NotPossibleError, listed, messages, number

if TYPE_CHECKING:
    from sqlmq.verify.history import Json
    from tests.verify.selftest.draft import Draft
    from tests.verify.selftest.simulated_queue import Line

_LEASE = {"group": "billing", "topic": "orders"}
_BLOCKS = {"group": "totals", "topic": "orders"}
_RUN = {"group": "mails", "topic": "orders"}


def empty_poll(draft: Draft) -> None:
    """A poll returned nothing although an acknowledged message was available."""
    acknowledged_at = {
        one["m"]: number(ok, "t") for _, ok in draft.pairs("send") for one in messages(ok, "placed") if "offset" in one
    }
    candidates = []
    for invoke, ok in draft.pairs("poll", **_LEASE):
        begun = number(invoke, "t")
        owned = set(map(str, listed(invoke, "owned")))
        if any(
            acknowledged_at.get(one["m"], begun) < begun and str(one["partition"]) in owned
            for one in messages(ok, "delivered")
        ):
            candidates.append(ok)
    draft.pick(candidates)["delivered"] = []


def never_deliver(draft: Draft) -> None:
    """A message in the middle was never delivered to a group whose position has passed it."""
    _hide(draft, *_somewhere(draft))


def never_finish(draft: Draft) -> None:
    """A message was delivered and never completed, but the position has passed it."""
    partition, offset = _somewhere(draft)
    for line in draft.lines("note", "done", **_LEASE, partition=partition):
        line["offsets"] = [one for one in listed(line, "offsets") if one != offset]


def hide_last(draft: Draft) -> None:
    """The last message of a partition never came to a group, which was drained."""
    row = draft.last_row("orders")
    _hide(draft, row["partition"], row["offset"])
    draft.pick(draft.rows("position", **_LEASE, partition=row["partition"]))["offset"] = row["offset"]


def swap_polls(draft: Draft) -> None:
    """Of two polls of a partition, the first got what is behind that of the second."""
    partition = draft.chosen.randrange(3)
    polls = []
    for _, ok in draft.pairs("poll", **_LEASE):
        of_it = [one for one in messages(ok, "delivered") if one["partition"] == partition]
        if of_it:
            polls.append((ok, of_it))
    if len(polls) < 4:
        raise NotPossibleError
    (one, of_one), (other, of_other) = polls[0], polls[3]
    for ok, own, got in ((one, of_one, of_other), (other, of_other, of_one)):
        others = [message for message in messages(ok, "delivered") if message not in own]
        ok["delivered"] = [*others, *got]


def deliver_again(draft: Draft) -> None:
    """A message was redelivered without a reason."""
    invoke, ok = draft.pick([pair for pair in draft.pairs("poll", **_LEASE) if listed(pair[1], "delivered")])
    later = number(ok, "t") + 1_000_000_000
    of = draft.add(later, str(invoke["p"]), "invoke", "poll", **_LEASE)
    draft.add(later + 1, str(invoke["p"]), "ok", "poll", of=of, delivered=listed(ok, "delivered")[:1])


def move_back(draft: Draft) -> None:
    """A position is lower at the end than it was."""
    seen = [ok for _, ok in draft.pairs("positions", **_LEASE) if any(_positions(ok).values())]
    partition = draft.pick([name for name, position in _positions(draft.pick(seen)).items() if position])
    draft.pick(draft.rows("position", **_LEASE, partition=int(partition)))["offset"] = 0


def commit_as_zombie(draft: Draft) -> None:
    """A member commits a partition that another member has taken over."""
    got: dict[Json, list[tuple[int, int, str, int]]] = {}
    for invoke, ok in draft.pairs("poll", **_LEASE):
        for one in messages(ok, "delivered"):
            what = (number(invoke, "t"), number(ok, "t"), str(ok["p"]), number(one, "offset"))
            got.setdefault(one["partition"], []).append(what)
    changes = [
        (partition, before, after)
        for partition, polls in got.items()
        for before, after in pairwise(polls)
        if before[2] != after[2] and before[1] < after[0]
    ]
    partition, before, after = draft.pick(changes)
    of = draft.add(after[1] + 1, before[2], "invoke", "commit", **_LEASE)
    draft.add(after[1] + 2, before[2], "ok", "commit", of=of, positions={str(partition): before[3] + 1})


def commit_twice(draft: Draft) -> None:
    """Two transactions that received the same messages were committed."""
    invoke, ok = draft.pick([pair for pair in draft.pairs("txn", **_BLOCKS) if listed(pair[0], "delivered")])
    later = number(ok, "t") + 1
    of = draft.add(later, "totals-9.0", "invoke", "txn", **_BLOCKS, delivered=listed(invoke, "delivered"))
    draft.add(later + 1, "totals-9.0", "ok", "txn", of=of)


def double_effect(draft: Draft) -> None:
    """A message has its effect twice."""
    draft.pick(draft.rows("effect", group="totals"))["count"] = 2


def lose_effect(draft: Draft) -> None:
    """A message does not have its effect, and the position is behind it."""
    draft.remove(draft.pick(draft.rows("effect", group="totals")))


def move_beyond(draft: Draft) -> None:
    """A position is behind the end of its partition."""
    row = draft.pick(draft.rows("position", **_LEASE))
    row["offset"] = number(row, "offset") + 1


def trim_unread(draft: Draft) -> None:
    """Retention deleted what a group had not read yet."""
    trims = [ok for _, ok in draft.pairs("retain", topic="trimmed")]
    ends = {str(row["partition"]): number(row, "end") for row in draft.rows("partition", topic="trimmed")}
    draft.pick(trims[: len(trims) // 3])["starts"] = dict(ends)


def strand(draft: Draft) -> None:
    """A message waits for another attempt after the group was drained."""
    draft.history.rows.append(_parked(draft, "waiting"))


def bury_alive(draft: Draft) -> None:
    """A message that its handler has finished is a dead letter."""
    draft.history.rows.append(_parked(draft, "dead"))


def try_too_often(draft: Draft) -> None:
    """A handler failed more often at a message than allowed."""
    invoke, ok = draft.pick(list(draft.pairs("handle", **_RUN)))
    for turn in range(4):
        moment = number(ok, "t") + 1_000_000 * (turn + 1)
        of = draft.add(moment, str(ok["p"]), "invoke", "handle", **_RUN, delivered=listed(invoke, "delivered"))
        draft.add(moment + 1, str(ok["p"]), "fail", "handle", of=of, err="ValueError")


def go_on_after_abort(draft: Draft) -> None:
    """After a transaction that was rolled back the next one began behind its first message."""
    failed = {(line["p"], line["of"]) for line in draft.lines("fail", "txn")}
    unknown = [line for line in draft.lines("invoke", "txn", **_BLOCKS) if draft.completion(line) is None]
    dark = {messages(line, "delivered")[0]["partition"] for line in unknown if messages(line, "delivered")}
    before: dict[Json, Line] = {}
    candidates = []
    for line in draft.lines("invoke", "txn", **_BLOCKS):
        delivered = messages(line, "delivered")
        if not delivered or delivered[0]["partition"] in dark:
            continue
        last = before.get(delivered[0]["partition"])
        if last is not None and (last["p"], last["i"]) in failed and len(delivered) > 1:
            candidates.append(line)
        before[delivered[0]["partition"]] = line
    chosen = draft.pick(candidates)
    chosen["delivered"] = listed(chosen, "delivered")[1:]


def stop_reading(draft: Draft) -> None:
    """No member read for a while, although there were messages and no fault."""
    polls = draft.lines("invoke", "poll", **_LEASE)
    since = number(polls[len(polls) // 2], "t")
    for line in draft.history.lines:
        is_groups = line.get("group") == "billing" or str(line["p"]).startswith("billing")
        if number(line, "t") >= since and (is_groups or line["f"] == "drain"):
            line["t"] = number(line, "t") + 60_000_000_000


def fail_drain(draft: Draft) -> None:
    """A group did not read what was left in time."""
    ok = draft.pick(draft.lines("ok", "drain"))
    ok["type"], ok["err"] = "fail", "TimeoutError"


def hang(draft: Draft) -> None:
    """A call took much longer than any may."""
    invoke, ok = draft.pick(list(draft.pairs("snapshot", topic="trimmed")))
    ok["t"] = number(invoke, "t") + 1_000_000_000_000


def leave_residue(draft: Draft) -> None:
    """Sessions were left in a transaction."""
    draft.pick(draft.rows("residue"))["count"] = 2


def _somewhere(draft: Draft) -> tuple[Json, Json]:
    """A partition, and an offset in it that is not the last."""
    last = {row["partition"]: row["offset"] for row in draft.rows("message", topic="orders")}
    rows = [row for row in draft.rows("message", topic="orders") if row["offset"] != last[row["partition"]]]
    row = draft.pick(rows)
    return row["partition"], row["offset"]


def _hide(draft: Draft, partition: Json, offset: Json) -> None:
    """Remove all deliveries of a message to the group."""
    for _, ok in draft.pairs("poll", **_LEASE):
        place = (partition, offset)
        ok["delivered"] = [one for one in messages(ok, "delivered") if (one["partition"], one["offset"]) != place]
    for line in draft.lines("note", "done", **_LEASE, partition=partition):
        line["offsets"] = [one for one in listed(line, "offsets") if one != offset]


def _parked(draft: Draft, state: str) -> Line:
    """Return a row for a parked message whose handler has succeeded."""
    invoke, _ = draft.pick(list(draft.pairs("handle", **_RUN)))
    one = messages(invoke, "delivered")[0]
    place: Line = {"partition": one["partition"], "offset": one["offset"]}
    return {"row": "parked", **_RUN, **place, "state": state, "attempts": 1}


def _positions(line: Line) -> dict[str, int]:
    positions = line.get("positions")
    if not isinstance(positions, dict):
        raise NotPossibleError
    return {partition: offset for partition, offset in positions.items() if isinstance(offset, int)}
