"""Decisions about a message whose handler fails: whether and when to retry, and what happens afterwards. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, get_args

from sqlmq.model import validation

FailurePolicy = Literal["park", "dead", "skip", "stop"]
"""The policy for a message whose handler fails, and for the messages after it; docs/failures.md has the table."""

_COUNTED_TOGETHER_SECONDS = 0.02
"""How long a batch of messages that share one count should take. A crash makes all of them look attempted."""
_MAX_COUNTED_TOGETHER = 100
_MAX_DOUBLINGS = 64
"""Enough doublings to exceed any ``max_delay_seconds``, and too few to overflow a float."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The number and the times of the attempts of a message.

    The first retry starts *backoff_seconds* after the failed attempt. Each later delay is twice as long, up to
    *max_delay_seconds*. *jitter* is the share of a delay that is random, so that messages that failed together are not
    retried together. An exception of a class in *give_up_on*, or of none in *retry_on*, is not retried. SystemExit and
    KeyboardInterrupt are no failures: they end the run.

    *max_attempts* counts all attempts, also attempts that ended with a crash of the process. None is no limit.
    """

    max_attempts: int | None = 5
    backoff_seconds: float = 1.0
    max_delay_seconds: float = 300.0
    jitter: float = 0.25
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            validation.integer("max_attempts", self.max_attempts)
        validation.seconds("backoff_seconds", self.backoff_seconds)
        validation.seconds("max_delay_seconds", self.max_delay_seconds)
        validation.number("jitter", self.jitter, most=1)
        for name in ("retry_on", "give_up_on"):
            kinds = getattr(self, name)
            if not isinstance(kinds, tuple) or not all(map(_is_exception_class, kinds)):
                message = f"{name} must be a tuple of exception classes, not {kinds!r}."
                raise TypeError(message)


def attempts_of_interrupted(retry: Retry) -> int:
    """Return the attempts to count for a message that may have been attempted: 1, unless that would end its retries untried."""
    return 0 if retry.max_attempts == 1 else 1


def is_exhausted(retry: Retry, attempts: int) -> bool:
    """Whether no attempt is left after *attempts*."""
    return retry.max_attempts is not None and attempts >= retry.max_attempts


def is_final(retry: Retry, error: BaseException, attempts: int) -> bool:
    """Whether no attempt follows the last of *attempts*, which failed with *error*."""
    kind = type(error)  # isinstance() would ask the exception itself, by __class__
    may_retry = issubclass(kind, retry.retry_on) and not issubclass(kind, retry.give_up_on)
    return not may_retry or is_exhausted(retry, attempts)


def retry_delay_seconds(retry: Retry, attempts: int, random: float) -> float:
    """Return the delay after attempt number *attempts*, counted from 1. *random* is in [0, 1)."""
    doubled = retry.backoff_seconds * 2.0 ** min(max(attempts - 1, 0), _MAX_DOUBLINGS)
    return min(doubled, retry.max_delay_seconds) * (1.0 - retry.jitter * random)


class FailureAction(Enum):
    """The action for a message whose attempt has failed."""

    PARK = auto()
    """Retry it later, and the later messages of its key after it. Other keys continue."""
    BLOCK = auto()
    """Retry it later. Its partition waits."""
    DEAD = auto()
    """Keep it as a dead letter. Its partition continues."""
    SKIP = auto()
    """Drop it. Its partition continues."""
    STOP = auto()
    """Its partition waits until an operator retries or discards it."""

    @property
    def is_retry(self) -> bool:
        """Whether the message is retried automatically."""
        return self in (FailureAction.PARK, FailureAction.BLOCK)

    @property
    def blocks_partition(self) -> bool:
        """Whether the group's position stays at the message."""
        return self in (FailureAction.BLOCK, FailureAction.STOP)


def decide(
    policy: FailurePolicy | None, *, has_key: bool, is_final: bool, is_parked: bool, has_room: bool
) -> FailureAction:
    """Decide by *policy*. None means ``park`` for messages with a key, and ``dead`` for messages without.

    A message that *is_parked* already is below the group's position, so it can't block or stop its partition. A message
    that is not parked blocks its partition unless the partition *has_room* for another parked message.
    """
    if is_final:
        if policy == "skip":
            return FailureAction.SKIP
        return FailureAction.STOP if policy == "stop" and not is_parked else FailureAction.DEAD
    if is_parked:
        return FailureAction.PARK
    # Without a key, the order of later messages does not matter, so only `stop` keeps the message in its place.
    may_park = policy in (None, "park") if has_key else policy != "stop"
    return FailureAction.PARK if may_park and has_room else FailureAction.BLOCK


def next_batch_hint(batch_hint: int, handled: int, seconds: float) -> int:
    """Return how many messages take about 20 ms, after *handled* of *batch_hint* messages took *seconds*."""
    fitting = int(handled * _COUNTED_TOGETHER_SECONDS / max(seconds, 1e-6)) if handled else 1
    return max(1, min(fitting, 2 * batch_hint, _MAX_COUNTED_TOGETHER))


def check_retry(retry: object) -> None:
    """Raise TypeError unless *retry* is a Retry."""
    if not isinstance(retry, Retry):
        message = f"retry must be a sqlmq.Retry, not {type(retry).__name__}."
        raise TypeError(message)


def check_policy(policy: object) -> None:
    """Raise ValueError unless *policy* is a FailurePolicy or None."""
    if policy is not None:
        validation.choice("on_failure", policy, get_args(FailurePolicy))


def _is_exception_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
