"""`Problem`: something wrong, in words for people and in facts for programs; and the codes that there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "info"]
"""Act now, look at it, or only know that something was not checked."""


class ProblemKind(NamedTuple):
    """The exit code of ``sqlmq doctor`` for a problem (0 for mere information), and how bad the problem is."""

    exit_code: int
    severity: Severity


PROBLEM_KINDS: Mapping[str, ProblemKind] = {
    "schema": ProblemKind(10, "error"),
    "read-only": ProblemKind(11, "error"),
    "wraparound": ProblemKind(12, "error"),
    "sqlite-version": ProblemKind(13, "error"),
    "network-file-system": ProblemKind(14, "error"),
    "not-durable": ProblemKind(15, "error"),
    "file-moved": ProblemKind(16, "error"),
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
    "clock-set-back": ProblemKind(36, "warning"),
    "old-transaction-elsewhere": ProblemKind(0, "info"),
    "not-seen": ProblemKind(0, "info"),
}
"""The problems that ``Admin.diagnose`` can find, the worst first."""

GROUP_PROBLEM_CODES = (
    "held-claim",
    "no-members",
    "evicted",
    "blocked-partition",
    "partition-barrier",
    "no-owner",
    "silent-owner",
    "no-progress",
    "blocked-keys",
    "dead-letters",
)
"""The problems that ``Admin.diagnose_group`` can find; docs/stuck-consumer.md explains them. All are warnings."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, in words for people and in facts for programs."""

    code: str
    """A key of ``PROBLEM_KINDS`` or one of ``GROUP_PROBLEM_CODES``."""
    summary: str
    """What is wrong: a sentence or two."""
    remedy: str
    """What to do: a sentence, with a command or SQL where there is one."""
    topic: str | None = None
    """The topic, if the problem concerns one."""
    group: str | None = None
    """The group, if the problem concerns one."""
    partition: int | None = None
    """The partition, if the problem concerns a single one."""
    details: Mapping[str, object] = field(default_factory=dict)
    """More facts; which ones depends on the code."""

    @property
    def severity(self) -> Severity:
        """``error``: act now. ``warning``: look at it. ``info``: nothing is wrong, but you should know."""
        kind = PROBLEM_KINDS.get(self.code)
        return "warning" if kind is None else kind.severity

    @property
    def exit_code(self) -> int:
        """The exit code of ``sqlmq doctor`` if it finds nothing worse; 0 if only ``diagnose_group`` finds the problem."""
        kind = PROBLEM_KINDS.get(self.code)
        return 0 if kind is None else kind.exit_code
