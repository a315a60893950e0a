"""Short runs of the library as it is, and with one thing broken in it: the judge has to acquit the one and convict the other."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmq.verify import history, workload
from sqlmq.verify.judge.verdict import judged
from sqlmq.verify.plan import Plan
from sqlmq.verify.sabotage import SABOTAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmq.verify.sabotage import Sabotage

CONTROL = "control"
"""The name of the run in which nothing is broken."""

_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one short run."""

    name: str
    breaks: str
    expected: str | None
    """The code of the anomaly that has to be found; None if nothing may be."""
    found: dict[str, int] = field(default_factory=dict)
    """How often each anomaly was found, by its code."""
    outcome: str = ""
    directory: Path | None = None

    @property
    def is_right(self) -> bool:
        """Whether the judge has seen what there was."""
        return self.outcome == "valid" if self.expected is None else self.expected in self.found


def trials(directory: Path, url: str | None, names: Sequence[str] | None = None) -> Iterator[Trial]:
    """Run, one after the other, the control and all sabotages, or those with *names*; each in a directory in *directory*."""
    for name in (CONTROL, *SABOTAGES) if names is None else names:
        yield _tried(directory / name, url, SABOTAGES.get(name))


def _tried(directory: Path, url: str | None, sabotage: Sabotage | None) -> Trial:
    plan = Plan.of(
        url,
        None,
        secrets.token_hex(4),
        directory,
        seconds=_SECONDS,
        producers=2,
        consumers=2,
        partitions=3,
        faults=() if sabotage is not None else ("kill", "pause"),
    )
    if sabotage is not None:
        plan = sabotage.planned(plan)
    workload.perform(plan)
    verdict = judged(*history.read_directory(directory))
    found = {code: len(examples) for code, examples in verdict.findings.examples.items()}
    if sabotage is None:
        return Trial(CONTROL, "Nothing is broken.", None, found, verdict.outcome, directory)
    return Trial(sabotage.name, sabotage.breaks, sabotage.expected, found, verdict.outcome, directory)
