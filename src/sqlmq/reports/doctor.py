"""What is wrong with a database that holds a queue. Pure functions of what was seen there; no SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlmq.reports.problem import PROBLEM_KINDS, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class DoctorLimits:
    """The values above which ``Admin.diagnose`` reports a problem."""

    transaction_seconds: float = 300.0
    """How long a transaction, or a prepared one, may be open."""
    dead_rows: int = 100_000
    """How many rows of a table may wait for vacuum, if they are more than half of the table."""
    transaction_ids: int = 1_000_000_000
    """The age of a table's oldest transaction id; Postgres stops at 2,000,000,000."""
    connections: float = 0.9
    """The share of the server's connections that may be in use."""
    clock_seconds: float = 1.0
    """The difference between this machine's clock and the database's."""
    wal_bytes: int = 256 * 2**20
    """The size of SQLite's write-ahead file."""
    stuck_seconds: float = 60.0
    """How long a message may wait in a partition without an owner, or a due message for its move into the log."""
    slot_bytes: int = 2**30
    """How much of the write-ahead log an unused replication slot may retain."""


def check_limits(limits: object) -> None:
    """Raise TypeError unless *limits* are DoctorLimits."""
    if not isinstance(limits, DoctorLimits):
        message = (
            f"limits must be DoctorLimits, as in DoctorLimits(transaction_seconds=600), not {type(limits).__name__}."
        )
        raise TypeError(message)


class OpenTransaction(NamedTuple):
    """A transaction of another session, or a prepared one, and how long it has been open."""

    name: str
    """Its process, application and state; or the identifier under which it was prepared."""
    seconds: float


class TableHealth(NamedTuple):
    """The state of one of our tables."""

    name: str
    live_rows: int
    dead_rows: int
    is_vacuumed: bool
    """Whether autovacuum is on, for the server and the table."""
    oldest_id: int
    """The age of the oldest row that counts, in transaction ids."""


class IdleSlot(NamedTuple):
    """A replication slot without a reader, and how much of the write-ahead log the server retains for it."""

    name: str
    kept_bytes: int


class Overdue(NamedTuple):
    """Messages of a topic that are due but not in the log, and for how long the first of them has been due."""

    topic: str
    messages: int
    seconds: float


class NotChecked(NamedTuple):
    """Something that was not checked, because the role may not read it."""

    name: str
    remedy: str


class DatabaseStatus(NamedTuple):
    """What a database reports about itself. None where it has no such thing, or does not tell."""

    read_only: str | None = None
    """Why nothing can be written."""
    has_moved: bool = False
    """Whether the file was removed or replaced since this process opened it."""
    isolation: str | None = None
    is_pooled: bool = False
    off: tuple[str, ...] = ()
    """Settings that must be on for a durable commit, and are off."""
    transactions: tuple[OpenTransaction, ...] = ()
    prepared: tuple[OpenTransaction, ...] = ()
    transactions_elsewhere: tuple[OpenTransaction, ...] = ()
    """Transactions in other databases of the server that hold back vacuum here."""
    idle_slots: tuple[IdleSlot, ...] = ()
    tables: tuple[TableHealth, ...] = ()
    connections: tuple[int, int] | None = None
    """Connections in use, and the maximum."""
    sqlite_version: tuple[int, ...] | None = None
    journal_mode: str | None = None
    file_system: str | None = None
    """The kind of network file system that the file is on."""
    wal_bytes: int = 0
    hides_sessions: bool = False
    """Whether this role can't see how long other users' transactions have been open."""


class GroupHealth(NamedTuple):
    """The state of one group."""

    topic: str
    name: str
    lag: int
    unowned_seconds: float
    """The age of the oldest message in a partition that no member owns."""
    has_members: bool
    dead_members: tuple[str, ...]
    dead_letters: int
    is_protected: bool
    """Whether the topic keeps, beyond its limits, what the group has not read."""
    ahead_seconds: float = 0.0
    """How far its heartbeats or commits lie ahead of the database's clock."""


def of_database(seen: DatabaseStatus, clock_seconds: float, limits: DoctorLimits) -> Iterator[Problem]:
    """Yield the problems of the database itself."""
    if seen.read_only is not None:
        yield Problem(
            "read-only", f"This database can't be written to: {seen.read_only}.", "Connect to the primary server."
        )
    if seen.off:
        settings = ", ".join(seen.off)
        yield Problem(
            "not-durable",
            f"An acknowledged message can be lost if the machine fails: {settings}.",
            "Set them to on.",
            details={"settings": list(seen.off)},
        )
    yield from _of_what_holds_back_vacuum(seen, limits)
    for table in seen.tables:
        yield from _of_table(table, limits)
    if seen.connections is not None and seen.connections[0] >= limits.connections * seen.connections[1]:
        used, most = seen.connections
        yield Problem(
            "connections",
            f"{used} of the server's {most} connections are in use.",
            "Use smaller pools or PgBouncer, or raise max_connections.",
            details={"used": used, "most": most},
        )
    if abs(clock_seconds) > limits.clock_seconds:
        yield Problem(
            "clock",
            f"This machine's clock is {clock_seconds:+.1f} s off the database's.",
            "Synchronize both by NTP. sqlmq uses the database's clock, so only times that you pass in are off.",
            details={"seconds": round(clock_seconds, 3)},
        )
    if seen.isolation not in (None, "read committed"):
        yield Problem(
            "isolation",
            f"default_transaction_isolation is {seen.isolation}, so what your sessions publish is staged first and "
            "moved into the log a moment later.",
            "Leave it at read committed, unless your application needs the other level.",
            details={"isolation": seen.isolation},
        )
    yield from _of_file(seen, limits)
    if seen.hides_sessions:
        yield from of_unseen([NotChecked("sessions of other users", "GRANT pg_read_all_stats TO it.")])


def of_group(group: GroupHealth, limits: DoctorLimits) -> Iterator[Problem]:
    """Yield the problems of a group."""
    name = f"{group.name} on {group.topic}"

    def problem(code: str, summary: str, remedy: str, **details: object) -> Problem:
        return Problem(code, f"{name}: {summary}", remedy, group.topic, group.name, details=details)

    if group.unowned_seconds > limits.stuck_seconds:
        yield problem(
            "no-owner",
            f"messages have waited for {group.unowned_seconds:.0f} s in a partition that no member owns.",
            f"Start a consumer. `sqlmq groups describe {group.name} --topic {group.topic}` shows more.",
            seconds=round(group.unowned_seconds, 1),
        )
    if group.ahead_seconds > limits.clock_seconds:
        yield problem(
            "clock-set-back",
            f"heartbeats or commits lie up to {group.ahead_seconds:.0f} s ahead of the database's clock, so that was set "
            "back since.",
            "Look at NTP, and at where a failover has led. Delayed messages and retries from before may be late by as "
            "much. New heartbeats and commits end this report.",
            seconds=round(group.ahead_seconds, 1),
        )
    if group.dead_members:
        yield problem(
            "dead-member",
            f"no heartbeat for longer than the lease from {', '.join(group.dead_members)}.",
            "They died, or can't reach the database. The next consumer of the group removes them.",
            members=list(group.dead_members),
        )
    if group.dead_letters:
        yield problem(
            "dead-letters",
            f"{group.dead_letters} dead letters wait for a decision.",
            f"Look at them with `sqlmq parked list {group.topic} --group {group.name} --state dead`.",
            messages=group.dead_letters,
        )
    if group.is_protected and not group.has_members and group.lag:
        yield problem(
            "pins-retention",
            f"no member reads, and retention keeps {group.lag} messages for the group until its protection ends.",
            f"Start a consumer, or skip the messages: "
            f"`sqlmq groups reset {group.name} --topic {group.topic} --to-latest --execute`.",
            messages=group.lag,
        )


def of_notices(seen: DatabaseStatus, *, do_arrive: bool) -> Iterator[Problem]:
    """Yield the problem that notifications do not arrive, if *do_arrive* is false."""
    if not do_arrive:
        cause = "A pooler is in between" if seen.is_pooled else "LISTEN or NOTIFY does not work"
        yield Problem(
            "pooler",
            f"{cause}: notifications do not arrive, and idle consumers only poll, every poll_max_seconds.",
            "Give consumers a URL of the server itself, or leave it: no message is lost.",
            details={"is_pooled": seen.is_pooled},
        )


def of_delayed(overdue: Overdue, limits: DoctorLimits) -> Iterator[Problem]:
    """Yield the problem of a topic's delayed messages that are overdue."""
    if overdue.seconds > limits.stuck_seconds:
        yield Problem(
            "overdue-delayed",
            f"{overdue.topic}: {overdue.messages} messages have been due for up to {overdue.seconds:.0f} s, and no "
            "process moves them into the log.",
            "Start a consumer of any topic. If one runs, look for 'scheduling failed' in its log.",
            overdue.topic,
            details={"messages": overdue.messages, "seconds": round(overdue.seconds, 1)},
        )


def of_unseen(unseen: Iterable[NotChecked]) -> Iterator[Problem]:
    """Yield what could not be checked."""
    for one in unseen:
        yield Problem(
            "not-seen", f"Not checked: {one.name}. This role may not read it.", one.remedy, details={"name": one.name}
        )


def worst_first(problems: Iterable[Problem]) -> list[Problem]:
    """Sort *problems*, the worst first."""
    order = list(PROBLEM_KINDS)
    return sorted(problems, key=lambda problem: order.index(problem.code))


def _of_what_holds_back_vacuum(seen: DatabaseStatus, limits: DoctorLimits) -> Iterator[Problem]:
    for slot in seen.idle_slots:
        if slot.kept_bytes > limits.slot_bytes:
            yield Problem(
                "inactive-slot",
                f"The replication slot {slot.name} has no reader, and the server retains {slot.kept_bytes:,} bytes of "
                "the write-ahead log for it.",
                "Start its reader; or, if that is gone: SELECT pg_drop_replication_slot(NAME).",
                details={"name": slot.name, "bytes": slot.kept_bytes},
            )
    rows = "Until it ends, vacuum can't remove deleted rows."
    pages = "Until it ends, emptied pages of indexes are not reused."
    for code, transactions, harm, remedy in (
        (
            "old-transaction",
            seen.transactions,
            rows,
            "End it: SELECT pg_terminate_backend(PID). Then repair the program that left it open.",
        ),
        (
            "prepared-transaction",
            seen.prepared,
            rows,
            "Run COMMIT PREPARED or ROLLBACK PREPARED with its identifier.",
        ),
        (
            "old-transaction-elsewhere",
            seen.transactions_elsewhere,
            pages,
            "End it, like one of this database.",
        ),
    ):
        for one in transactions:
            if one.seconds > limits.transaction_seconds:
                yield Problem(
                    code,
                    f"Open for {one.seconds:.0f} s: {one.name}. {harm}",
                    remedy,
                    details={"name": one.name, "seconds": round(one.seconds, 1)},
                )


def _of_table(table: TableHealth, limits: DoctorLimits) -> Iterator[Problem]:
    if table.oldest_id > limits.transaction_ids:
        yield Problem(
            "wraparound",
            f"{table.name}: its oldest transaction id is {table.oldest_id:,} old. At 2,000,000,000 the server stops "
            "writing.",
            f"End old transactions, then VACUUM (FREEZE) {table.name}.",
            details={"table": table.name, "age": table.oldest_id},
        )
    if table.dead_rows > limits.dead_rows and table.dead_rows > table.live_rows:
        yield Problem(
            "dead-rows",
            f"{table.name}: {table.dead_rows:,} dead rows wait for vacuum, beside {table.live_rows:,} live ones.",
            f"Look for old transactions; then VACUUM {table.name}.",
            details={"table": table.name, "dead": table.dead_rows, "live": table.live_rows},
        )
    if not table.is_vacuumed:
        yield Problem(
            "no-autovacuum",
            f"{table.name}: autovacuum is off, so deleted rows are never removed.",
            f"Switch it on for the server; ALTER TABLE {table.name} RESET (autovacuum_enabled).",
            details={"table": table.name},
        )


def _of_file(seen: DatabaseStatus, limits: DoctorLimits) -> Iterator[Problem]:
    if seen.sqlite_version is not None and seen.journal_mode == "wal" and _may_corrupt(seen.sqlite_version):
        version = ".".join(map(str, seen.sqlite_version))
        yield Problem(
            "sqlite-version",
            f"SQLite {version} can, rarely, damage a file in WAL mode when two connections write and checkpoint at the "
            "same time.",
            "Use a Python with SQLite 3.51.3 or later, and keep backups. https://www.sqlite.org/wal.html#walresetbug",
            details={"version": version},
        )
    if seen.has_moved:
        yield Problem(
            "file-moved",
            "This process has a file open that was removed or replaced: what it reads is not what other programs see.",
            "Its next write fails, and opens the file that is there then. Restore that first if it is the wrong one.",
        )
    if seen.file_system is not None:
        yield Problem(
            "network-file-system",
            f"The file is on a network file system ({seen.file_system}), where SQLite's locks are not reliable.",
            "Keep it on a local disk, or use Postgres.",
            details={"file_system": seen.file_system},
        )
    if seen.journal_mode not in (None, "wal", "memory"):
        yield Problem(
            "journal-mode",
            f"journal_mode is {seen.journal_mode}: readers and the writer block each other.",
            "PRAGMA journal_mode = WAL. An MQ made from a URL does that itself.",
            details={"journal_mode": seen.journal_mode},
        )
    if seen.wal_bytes > limits.wal_bytes:
        yield Problem(
            "large-wal",
            f"The write-ahead file has grown to {seen.wal_bytes:,} bytes: a read transaction has been open for long.",
            "Find the process that reads, and end its transaction; then PRAGMA wal_checkpoint(TRUNCATE).",
            details={"bytes": seen.wal_bytes},
        )


def _may_corrupt(version: tuple[int, ...]) -> bool:
    """Whether *version* has the WAL-reset bug: 3.7.0 and later; fixed in 3.51.3 and in two older lines."""
    fixed = {(3, 44): 6, (3, 50): 7}
    line, patch = version[:2], version[2]
    return line >= (3, 7) and version < (3, 51, 3) and not (line in fixed and patch >= fixed[line])
