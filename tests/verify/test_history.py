"""Histories are written by many processes, some of which are killed, and read as one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from sqlmq.verify.history import (
    Delivered,
    HistoryError,
    Placed,
    Recorder,
    Sent,
    event_of,
    final_of,
    read,
    read_directory,
    read_final,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with Recorder(tmp_path / "p.jsonl", "p") as recorder:
        of = recorder.invoke("send", topic="t", messages=[Sent("m", "h", 3, key="k", due=7)])
        recorder.ok("send", of, placed=[Placed("m", 1, 5), Placed("n")])
        recorder.note("poll", delivered=[Delivered(1, 5, None, "h", at=9)], positions={3: 4}, owned={1})

    invoke, ok, note = read([tmp_path / "p.jsonl"])

    assert (invoke.type, invoke.f, invoke.topic, invoke.p) == ("invoke", "send", "t", "p")
    assert invoke.messages == (Sent("m", "h", 3, key="k", due=7),)
    assert (ok.of, ok.placed) == (invoke.i, (Placed("m", 1, 5), Placed("n")))
    assert note.delivered == (Delivered(1, 5, None, "h", at=9),)
    assert (note.positions, note.more["owned"]) == ({3: 4}, [1])


@pytest.mark.parametrize("kind", ["fail", "info"])
def test_what_went_wrong_is_read(tmp_path: Path, kind: str) -> None:
    with Recorder(tmp_path / "p.jsonl", "p") as recorder:
        of = recorder.invoke("send", topic="t", messages=[])
        getattr(recorder, kind)("send", of, "DatabaseBusyError", sqlstate="55P03")

    _, completion = read([tmp_path / "p.jsonl"])

    assert (completion.type, completion.err, completion.sqlstate) == (kind, "DatabaseBusyError", "55P03")


def test_histories_of_several_processes_are_one_in_order_of_time(tmp_path: Path) -> None:
    one, other = Recorder(tmp_path / "z.jsonl", "z"), Recorder(tmp_path / "a.jsonl", "a")
    for recorder in (one, other, one):
        recorder.note("done")
    one.close()
    other.close()

    events, final = read_directory(tmp_path)

    assert [(event.p, event.i) for event in events] == [("z", 0), ("a", 0), ("z", 1)]
    assert final is None


def test_threads_that_share_a_recorder_write_whole_lines_with_numbers_of_their_own(tmp_path: Path) -> None:
    def write() -> None:
        for _ in range(200):
            recorder.note("done", text="x" * 500)

    with Recorder(tmp_path / "p.jsonl", "p") as recorder:
        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [event.i for event in read([tmp_path / "p.jsonl"])] == list(range(800))


def scribble(path: Path, told: Connection) -> None:
    with Recorder(path, "p") as recorder:
        for number in range(1_000_000):
            recorder.note("done", text="x" * 500)
            if number == 100:
                told.send("begun")


@pytest.mark.faults
def test_what_was_written_outlives_the_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    hears, told = context.Pipe(duplex=False)
    process = context.Process(target=scribble, args=(tmp_path / "p.jsonl", told))
    process.start()
    assert hears.poll(30)

    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    hears.close()
    told.close()

    events = read([tmp_path / "p.jsonl"])
    assert len(events) > 100
    assert [event.i for event in events] == list(range(len(events)))


@pytest.mark.parametrize("cut", [1, 20, 50])
def test_a_last_line_without_its_end_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "p.jsonl"
    with Recorder(path, "p") as recorder:
        recorder.note("done", text="x")
        recorder.note("done", text="y" * 100)
    path.write_bytes(path.read_bytes()[: -1 - cut])

    assert [event.i for event in read([path])] == [0]


def test_a_last_line_that_lacks_its_newline_alone_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with Recorder(path, "p") as recorder:
        recorder.note("done")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))

    assert [event.i for event in read([path])] == [0]


@pytest.mark.parametrize("damage", [b"{]\n", b"[]\n", b'{"i":1}\n'])
def test_a_line_that_is_no_event_is_an_error_that_says_where(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(damage + b'{"i":1,"t":1,"p":"p","type":"note","f":"done"}\n')

    with pytest.raises(HistoryError, match=r"p\.jsonl, line 1|\"i\": 1"):
        read([path])


LINE = {"i": 1, "t": 1, "p": "p", "type": "note", "f": "done"}


@pytest.mark.parametrize(
    "change",
    [
        {"type": "perhaps"},
        {"i": "1"},
        {"t": 1.5},
        {"t": True},
        {"p": None},
        {"of": "x"},
        {"messages": {}},
        {"messages": [1]},
        {"messages": [{"m": "a"}]},
        {"delivered": [{"m": "a", "h": "a", "partition": 0}]},
        {"placed": [{"partition": 0}]},
        {"offsets": ["1"]},
        {"positions": []},
        {"positions": {"x": 1}},
        {"effects": [1]},
    ],
)
def test_an_event_has_the_fields_of_the_format(change: dict[str, object]) -> None:
    line = json.loads(json.dumps({**LINE, **change}))

    with pytest.raises(HistoryError):
        event_of(line)


def test_the_state_at_the_end_is_read_if_it_is_whole(tmp_path: Path) -> None:
    rows = [
        {"row": "message", "topic": "t", "partition": 0, "offset": 4, "m": "a", "h": "h"},
        {"row": "partition", "topic": "t", "partition": 0, "start": 4, "end": 5},
        {"row": "position", "group": "g", "topic": "t", "partition": 0, "offset": 5},
        {"row": "effect", "group": "g", "m": "a", "count": 1},
        {"row": "parked", "group": "g", "topic": "t", "partition": 0, "offset": 4, "state": "dead", "attempts": 3},
        {"row": "eviction", "group": "g", "topic": "t", "partition": 0, "kind": "unread", "start": 0, "end": 2},
        {"row": "staged", "topic": "t", "partition": 0, "m": "b"},
        {"row": "residue", "what": "locks", "count": 1},
        {"row": "end"},
    ]
    path = tmp_path / "final.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    final = read_final(path)

    assert [(row.topic, row.partition, row.offset, row.m) for row in final.log] == [("t", 0, 4, "a")]
    assert final.ends == {("t", 0): (4, 5)}
    assert final.positions == {("g", "t", 0): 5}
    assert final.effects == {("g", "a"): 1}
    assert [row.state for row in final.parked] == ["dead"]
    assert [(row.start, row.end) for row in final.evictions] == [(0, 2)]
    assert final.staged == {"b"}
    assert [(row.what, row.remaining, row.most) for row in final.residue] == [("locks", 1, 0)]


def test_a_state_at_the_end_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "final.jsonl"
    path.write_text('{"row": "staged", "m": "b"}\n')

    with pytest.raises(HistoryError, match="incomplete"):
        read_final(path)


def test_a_row_of_an_unknown_sort_is_an_error() -> None:
    with pytest.raises(HistoryError, match="surprise"):
        final_of([{"row": "surprise"}])
