"""What is wrong with a database that holds a queue, and what to do about it. Pure: what was seen there is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "info"]
"""Whether a problem is to be dealt with now, or looked at, or only says what was not looked at."""


class ProblemKind(NamedTuple):
    """A kind of problem: what ``sqlmq doctor`` exits with, which for mere information is 0, and how bad it is."""

    exit_code: int
    severity: Severity


PROBLEM_KINDS: Mapping[str, ProblemKind] = {
    "schema": ProblemKind(10, "error"),
    "read-only": ProblemKind(11, "error"),
    "wraparound": ProblemKind(12, "error"),
    "sqlite-version": ProblemKind(13, "error"),
    "network-file-system": ProblemKind(14, "error"),
    "not-durable": ProblemKind(15, "error"),
    "old-transaction": ProblemKind(20, "warning"),
    "prepared-transaction": ProblemKind(21, "warning"),
    "dead-rows": ProblemKind(22, "warning"),
    "no-autovacuum": ProblemKind(23, "warning"),
    "connections": ProblemKind(24, "warning"),
    "clock": ProblemKind(25, "warning"),
    "isolation": ProblemKind(26, "warning"),
    "pooler": ProblemKind(27, "warning"),
    "journal-mode": ProblemKind(28, "warning"),
    "large-wal": ProblemKind(29, "warning"),
    "no-owner": ProblemKind(30, "warning"),
    "dead-member": ProblemKind(31, "warning"),
    "dead-letters": ProblemKind(32, "warning"),
    "pins-retention": ProblemKind(33, "warning"),
    "inactive-slot": ProblemKind(34, "warning"),
    "overdue-delayed": ProblemKind(35, "warning"),
    "old-transaction-elsewhere": ProblemKind(0, "info"),
    "not-seen": ProblemKind(0, "info"),
}
"""What can be found, the worst first."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, in words for people and in facts for programs."""

    code: str
    """One of ``KINDS``."""
    summary: str
    remedy: str
    """What to do: a sentence, with a command or SQL where there is one."""
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """``error``: do it now. ``warning``: look at it. ``info``: nothing is wrong, but you should know."""
        return PROBLEM_KINDS[self.code].severity

    @property
    def exit_code(self) -> int:
        """What ``sqlmq doctor`` exits with if nothing worse is found."""
        return PROBLEM_KINDS[self.code].exit_code


@dataclass(frozen=True, slots=True)
class DoctorLimits:
    """From where on something is a problem."""

    transaction_seconds: float = 300.0
    """How long a transaction, or a prepared one, may be open."""
    dead_rows: int = 100_000
    """How many rows of a table may wait to be cleared away, if they are more than half of it."""
    transaction_ids: int = 1_000_000_000
    """How old the oldest transaction id of a table may be; Postgres stops at 2,000,000,000."""
    connections: float = 0.9
    """Which part of the server's connections may be in use."""
    clock_seconds: float = 1.0
    """How far this machine's clock and the database's may be apart."""
    wal_bytes: int = 256 * 2**20
    """How large SQLite's write-ahead file may be."""
    stuck_seconds: float = 60.0
    """How long a message may wait for somebody who owns its partition, and how long one that is due to be moved into the log."""
    slot_bytes: int = 2**30
    """How much of the write-ahead log may be kept for a replication slot that nobody uses."""


def check_limits(limits: object) -> None:
    """Raise TypeError unless *limits* are such."""
    if not isinstance(limits, DoctorLimits):
        message = f"limits must be a DoctorLimits, such as DoctorLimits(connections=0.8), not {type(limits).__name__}."
        raise TypeError(message)


class OpenTransaction(NamedTuple):
    """A transaction of another session, or a prepared one, for as long as *seconds*."""

    name: str
    """Its process, application and state; or the identifier under which it was prepared."""
    seconds: float


class TableHealth(NamedTuple):
    """How one of our tables is kept."""

    name: str
    live_rows: int
    dead_rows: int
    is_vacuumed: bool
    """Whether autovacuum is on, for the server and the table."""
    oldest_id: int
    """How many transaction ids ago the oldest row that counts was written."""


class IdleSlot(NamedTuple):
    """A replication slot that nobody uses, for which the server keeps so many bytes of its write-ahead log."""

    name: str
    kept_bytes: int


class Overdue(NamedTuple):
    """Messages of a topic that are due and not in the log, the first of them for as long as *seconds*."""

    topic: str
    messages: int
    seconds: float


class NotChecked(NamedTuple):
    """What was not looked at, because the role may not."""

    name: str
    remedy: str


class DatabaseStatus(NamedTuple):
    """What a database says of itself. None is: it has no such thing, or does not tell."""

    read_only: str | None = None
    """Why nothing can be written."""
    isolation: str | None = None
    is_pooled: bool = False
    off: tuple[str, ...] = ()
    """Settings that have to be on for a commit to be durable, and are not."""
    transactions: tuple[OpenTransaction, ...] = ()
    prepared: tuple[OpenTransaction, ...] = ()
    transactions_elsewhere: tuple[OpenTransaction, ...] = ()
    """Those of other databases of the server that hold something back here."""
    idle_slots: tuple[IdleSlot, ...] = ()
    tables: tuple[TableHealth, ...] = ()
    connections: tuple[int, int] | None = None
    """In use, and the most there can be."""
    sqlite_version: tuple[int, ...] | None = None
    journal_mode: str | None = None
    file_system: str | None = None
    """The kind of network file system that the file is on."""
    wal_bytes: int = 0
    hides_sessions: bool = False
    """Whether this role is not told since when other users' transactions are open."""


class GroupHealth(NamedTuple):
    """How a group does."""

    topic: str
    name: str
    lag: int
    unowned_seconds: float
    """How long the oldest message of a partition waits that nobody owns."""
    has_members: bool
    dead_members: tuple[str, ...]
    dead_letters: int
    is_protected: bool
    """Whether the topic keeps, beyond its limits, what the group has not read."""


def of_database(seen: DatabaseStatus, clock_seconds: float, limits: DoctorLimits) -> Iterator[Problem]:
    """What is wrong with the database itself."""
    if seen.read_only is not None:
        yield Problem("read-only", f"Nothing can be written here: {seen.read_only}.", "Connect to the primary server.")
    if seen.off:
        settings = ", ".join(seen.off)
        yield Problem(
            "not-durable",
            f"What was acknowledged can be lost when the machine goes down: {settings}.",
            "Set them to on.",
            {"settings": list(seen.off)},
        )
    yield from _held_back(seen, limits)
    for table in seen.tables:
        yield from _of_table(table, limits)
    if seen.connections is not None and seen.connections[0] >= limits.connections * seen.connections[1]:
        used, most = seen.connections
        yield Problem(
            "connections",
            f"{used} of the server's {most} connections are in use.",
            "Use smaller pools, PgBouncer, or raise max_connections.",
            {"used": used, "most": most},
        )
    if abs(clock_seconds) > limits.clock_seconds:
        yield Problem(
            "clock",
            f"This machine's clock is {clock_seconds:+.1f} s off the database's.",
            "Have both follow NTP. sqlmq goes by the database's clock, so only moments that you give it are off.",
            {"seconds": round(clock_seconds, 3)},
        )
    if seen.isolation not in (None, "read committed"):
        yield Problem(
            "isolation",
            f"default_transaction_isolation is {seen.isolation}: what your sessions publish is staged first and moved a moment later.",
            "Leave it at read committed, unless your application needs the other.",
            {"isolation": seen.isolation},
        )
    yield from _of_file(seen, limits)
    if seen.hides_sessions:
        yield from of_unseen([NotChecked("sessions of other users", "GRANT pg_read_all_stats TO it.")])


def of_group(group: GroupHealth, limits: DoctorLimits) -> Iterator[Problem]:
    """What is wrong with a group."""
    where: dict[str, object] = {"topic": group.topic, "group": group.name}
    who = f"{group.name} on {group.topic}"
    if group.unowned_seconds > limits.stuck_seconds:
        yield Problem(
            "no-owner",
            f"{who}: messages wait for {group.unowned_seconds:.0f} s, and nobody owns their partition.",
            f"Start a consumer; sqlmq groups describe {group.name} --topic {group.topic} says more.",
            {**where, "seconds": round(group.unowned_seconds, 1)},
        )
    if group.dead_members:
        yield Problem(
            "dead-member",
            f"{who}: not heard of for longer than their lease: {', '.join(group.dead_members)}.",
            "They have died, or can't reach the database; the next consumer of the group removes them.",
            {**where, "members": list(group.dead_members)},
        )
    if group.dead_letters:
        yield Problem(
            "dead-letters",
            f"{who}: {group.dead_letters} dead letters wait for a decision.",
            f"sqlmq parked list {group.topic} --group {group.name} --state dead",
            {**where, "messages": group.dead_letters},
        )
    if group.is_protected and not group.has_members and group.lag:
        yield Problem(
            "pins-retention",
            f"{who}: nobody reads, and {group.lag} messages are kept for it until it expires.",
            f"Start a consumer, or skip them: sqlmq groups reset {group.name} --topic {group.topic} --to-latest --execute",
            {**where, "messages": group.lag},
        )


def of_notices(seen: DatabaseStatus, *, do_arrive: bool) -> Iterator[Problem]:
    """What is wrong with how consumers are woken, where they are by the database."""
    if not do_arrive:
        why = "A pooler is in between" if seen.is_pooled else "Something is wrong with LISTEN or NOTIFY"
        yield Problem(
            "pooler",
            f"{why}: notices do not arrive, and consumers look again every poll_max_seconds.",
            "Give consumers a URL that leads to the server itself, or leave it: nothing is lost.",
            {"is_pooled": seen.is_pooled},
        )


def of_delayed(overdue: Overdue, limits: DoctorLimits) -> Iterator[Problem]:
    """What is wrong with the messages of a topic that wait until they are due."""
    if overdue.seconds > limits.stuck_seconds:
        yield Problem(
            "overdue-delayed",
            f"{overdue.topic}: {overdue.messages} messages are due, for up to {overdue.seconds:.0f} s, and nobody moves them into the log.",
            "Start a consumer, of any topic; if some run, look for 'move failed' in their logs.",
            {"topic": overdue.topic, "messages": overdue.messages, "seconds": round(overdue.seconds, 1)},
        )


def of_unseen(unseen: Iterable[NotChecked]) -> Iterator[Problem]:
    """What nothing is known of."""
    for one in unseen:
        yield Problem("not-seen", f"Not looked at: {one.name}. This role may not.", one.remedy, {"name": one.name})


def worst_first(problems: Iterator[Problem]) -> list[Problem]:
    """*problems*, the worst first."""
    order = list(PROBLEM_KINDS)
    return sorted(problems, key=lambda problem: order.index(problem.code))


def _held_back(seen: DatabaseStatus, limits: DoctorLimits) -> Iterator[Problem]:
    for slot in seen.idle_slots:
        if slot.kept_bytes > limits.slot_bytes:
            yield Problem(
                "inactive-slot",
                f"Nobody uses the replication slot {slot.name}, and {slot.kept_bytes:,} bytes of the write-ahead log are kept for it.",
                "Start what reads it; or, if that is gone: SELECT pg_drop_replication_slot(NAME).",
                {"name": slot.name, "bytes": slot.kept_bytes},
            )
    rows, pages = (
        "Deleted rows can't be cleared away meanwhile.",
        "Emptied pages of indexes are not used again meanwhile.",
    )
    for code, transactions, harm, remedy in (
        (
            "old-transaction",
            seen.transactions,
            rows,
            "End it: SELECT pg_terminate_backend(PID). Then mend what left it open.",
        ),
        ("prepared-transaction", seen.prepared, rows, "COMMIT PREPARED or ROLLBACK PREPARED, by its identifier."),
        ("old-transaction-elsewhere", seen.transactions_elsewhere, pages, "End it, as one of this database."),
    ):
        for one in transactions:
            if one.seconds > limits.transaction_seconds:
                yield Problem(
                    code,
                    f"Open for {one.seconds:.0f} s: {one.name}. {harm}",
                    remedy,
                    {"name": one.name, "seconds": round(one.seconds, 1)},
                )


def _of_table(table: TableHealth, limits: DoctorLimits) -> Iterator[Problem]:
    if table.oldest_id > limits.transaction_ids:
        yield Problem(
            "wraparound",
            f"{table.name}: its oldest transaction id is {table.oldest_id:,} old. At 2,000,000,000 the server stops writing.",
            f"VACUUM (FREEZE) {table.name}, after ending old transactions.",
            {"table": table.name, "age": table.oldest_id},
        )
    if table.dead_rows > limits.dead_rows and table.dead_rows > table.live_rows:
        yield Problem(
            "dead-rows",
            f"{table.name}: {table.dead_rows:,} rows wait to be cleared away, beside {table.live_rows:,} live ones.",
            f"Look for old transactions; then VACUUM {table.name}.",
            {"table": table.name, "dead": table.dead_rows, "live": table.live_rows},
        )
    if not table.is_vacuumed:
        yield Problem(
            "no-autovacuum",
            f"{table.name}: autovacuum is off, so deleted rows are never cleared away.",
            f"Switch it on for the server; ALTER TABLE {table.name} RESET (autovacuum_enabled).",
            {"table": table.name},
        )


def _of_file(seen: DatabaseStatus, limits: DoctorLimits) -> Iterator[Problem]:
    if seen.sqlite_version is not None and seen.journal_mode == "wal" and _may_corrupt(seen.sqlite_version):
        version = ".".join(map(str, seen.sqlite_version))
        yield Problem(
            "sqlite-version",
            f"SQLite {version} can, rarely, damage a file in WAL mode when two connections write and checkpoint at once.",
            "Use a Python with SQLite 3.51.3 or later, and keep backups. https://www.sqlite.org/wal.html#walresetbug",
            {"version": version},
        )
    if seen.file_system is not None:
        yield Problem(
            "network-file-system",
            f"The file is on a network file system ({seen.file_system}), on which SQLite's locks can't be trusted.",
            "Keep it on a local disk, or use Postgres.",
            {"file_system": seen.file_system},
        )
    if seen.journal_mode not in (None, "wal", "memory"):
        yield Problem(
            "journal-mode",
            f"journal_mode is {seen.journal_mode}: readers and the writer hold each other up.",
            "PRAGMA journal_mode = WAL; an MQ made from a URL does that itself.",
            {"journal_mode": seen.journal_mode},
        )
    if seen.wal_bytes > limits.wal_bytes:
        yield Problem(
            "large-wal",
            f"The write-ahead file has grown to {seen.wal_bytes:,} bytes: a read transaction has been open for long.",
            "Find the process that reads, and end its transaction; then PRAGMA wal_checkpoint(TRUNCATE).",
            {"bytes": seen.wal_bytes},
        )


def _may_corrupt(version: tuple[int, ...]) -> bool:
    """Whether the WAL-reset bug is in it: from 3.7.0 on, mended in 3.51.3 and in two older lines."""
    mended = {(3, 44): 6, (3, 50): 7}
    line, patch = version[:2], version[2]
    return line >= (3, 7) and version < (3, 51, 3) and not (line in mended and patch >= mended[line])
